"""What the agent observes: probes of cells, drift from their spec, and the host's vitals.

Each hands what it saw to the daemon as an event; none of them decides.
"""
