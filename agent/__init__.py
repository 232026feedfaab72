"""The agent: a light daemon on each host that runs the cells it is ordered to run, and reports.

``state`` is the pure half: events in, instructions out. ``session`` is the link to the scheduler, ``runtimes`` run
cells, ``probes`` and ``vitals`` observe. The agent shares ``proto/`` with the scheduler and nothing else.
"""
