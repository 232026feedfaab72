"""The scheduler: decides which cells live and which go, and remembers why.

The core (``model``, ``events``, ``commands``, ``sight``, ``health``, ``budget``, ``placement``, ``transitions``,
``reconcile``, ``requests``, ``core``) is pure: values in, values out, ``now`` passed in. ``controller`` is the single
writer that drives it; ``journal``, ``dispatcher`` and ``operator_api`` are adapters that know the core's
types and never each other. ``__main__``'s wiring joins them.
"""
