"""Starts and ends one scheduler.

``run`` is what ``galactica scheduler`` and ``up`` call, ``scheduler`` owns journal, CA, controller and ports,
``listeners`` makes the gRPC servers, ``local_agent`` runs the agent beside it (``tethered`` ends it with us),
``clock`` is a wall clock that never jumps. Imports every room; only ``cli`` imports it.
"""
