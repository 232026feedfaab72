"""What the agent observes: probes of cells, drift from their spec, and the host's vitals.

Each module passes its observations to the daemon. None of them decides.

``daemon`` and ``__main__`` import it.
"""
