"""Starts and ends one scheduler.

``galactica scheduler`` and ``up`` call ``run``. ``scheduler`` owns journal, CA, controller and ports, ``listeners``
makes the gRPC servers, ``local_agent`` runs the agent of ``up`` (``tethered`` ends that agent with the scheduler),
``clock`` is a wall clock that never jumps. It imports every room; only ``cli`` imports it.
"""
