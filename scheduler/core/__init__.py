"""The core: pure decisions. Values in, values out; ``now`` is an argument; no IO, clock, chance or tasks.

``model`` has the values, ``sight`` what is observed, ``verdicts`` what that means, ``budgets`` and
``placement`` what is allowed, ``reconcile`` what to do about it; ``transitions`` is the one table of changes to
the fleet. ``admission`` answers requests, ``turns`` is the memory between two decisions, with its ``agenda``.
Everybody may import the core; the core imports only itself.
"""
