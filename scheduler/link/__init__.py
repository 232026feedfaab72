"""The agents' side: one stream for each agent (link.proto).

Reports come in as observations and go to the controller; orders leave through the ``session``. ``dispatcher``
is the service, ``watch`` tells agents which neighbours to watch (``neighbourhood`` draws them), ``shells`` are
operators' looks inside a cell.
"""
