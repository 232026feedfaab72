"""Ending exclusive cells where no scheduler is known to hear this server.

``keeping`` writes down until when they may live; ``watchdog`` is a process of its own that ends them where the
agent is killed or frozen.
"""
