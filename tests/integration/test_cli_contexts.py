"""The commands about contexts: a person works with several fleets and loses no key."""

import json

import pytest

from galactica.scheduler.security.identities import Role
from tests.support.command_line import run
from tests.support.operator_service import Scheduler, operator_service


@pytest.fixture
def fleets(tmp_path):
    """Two fleets of the same name, and a file with the context of the first."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    with operator_service(tmp_path / "first") as first, operator_service(tmp_path / "second") as second:
        yield first, second


def listed(scheduler: Scheduler) -> list[tuple[str, bool, str, str]]:
    rows = json.loads(run(scheduler, "context", "list", "-o", "json").stdout)
    return [(row["name"], row["is_current"], row["fleet_id"], row["operator"]) for row in rows]


def test_a_file_that_somebody_gave_is_added_chosen_and_forgotten(fleets, tmp_path):
    first, second = fleets
    mine, others = first.ca.fleet_id, second.ca.fleet_id
    suffixed = f"demo-{others[:8]}"
    given = second.context_for("bob", Role.VIEWER, tmp_path / "bob.json")

    done = run(first, "context", "add", str(given))
    assert done.returncode == 0, done
    assert done.stdout == f"{suffixed}: bob of fleet demo, now in {first.context_file}.\n"
    assert listed(first) == [("demo", False, mine, "ada"), (suffixed, True, others, "bob")]

    assert run(first, "context", "use", "demo").stdout == "demo is the current context.\n"
    assert listed(first) == [("demo", True, mine, "ada"), (suffixed, False, others, "bob")]
    assert "yes" in run(first, "context", "list").stdout

    assert run(first, "context", "forget", suffixed).returncode == 0
    assert listed(first) == [("demo", True, mine, "ada")]


def test_a_context_that_is_not_there_is_wrong_usage_and_those_that_are_there_are_named(fleets):
    first, _ = fleets
    done = run(first, "context", "use", "tset")
    assert done.returncode == 2
    assert "has no context 'tset'; it has demo" in done.stderr


def test_the_current_context_is_not_forgotten(fleets):
    first, _ = fleets
    done = run(first, "context", "forget", "demo")
    assert done.returncode == 1
    assert "'demo' is the current context" in done.stderr
    assert len(listed(first)) == 1
