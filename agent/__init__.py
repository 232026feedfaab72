"""The agent: a light daemon on each host. It runs the cells that the scheduler orders, and reports on them.

``link`` receives orders. ``core`` decides, event by event, what to do and what to report. ``carrier`` carries out
the decisions through ``runtimes``. ``health`` observes cells and host; ``neighbours`` watches other hosts;
``fencing`` ends exclusive cells when no scheduler hears this server. ``daemon`` connects the parts; ``start``
prepares what the daemon needs. The agent shares only ``galactica.v1`` with the scheduler.
"""
