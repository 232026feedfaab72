"""How hard hypothesis looks. The gate finds the same on every run, prints what fails and replays it; a person who
wants new examples runs ``HYPOTHESIS_PROFILE=explore pytest tests/property``."""

import os

from hypothesis import HealthCheck, settings

_CALM = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}

settings.register_profile(
    "gate",
    derandomize=True,
    database=None,
    max_examples=40,
    stateful_step_count=40,
    print_blob=True,
    **_CALM,
)
settings.register_profile("explore", max_examples=600, stateful_step_count=60, print_blob=True, **_CALM)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))
