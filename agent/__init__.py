"""The agent: a light daemon on each host that runs the cells it is ordered to run, and reports.

Orders come in by ``link``; ``core`` decides, event by event, what to do and what to report; ``carrier`` has it
done by ``runtimes``; ``health`` observes cells and host; ``neighbours`` watches other hosts; ``fencing`` ends
exclusive cells when nobody hears us. ``daemon`` joins them, ``start`` gets what it needs before it can begin.
The agent shares ``galactica.v1`` with the scheduler and nothing else.
"""
