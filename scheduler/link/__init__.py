"""The agents' side of the scheduler: one stream for each agent (link.proto).

Reports become observations for the controller; orders go out through a ``session``. ``dispatcher`` implements the
service. ``watch`` tells agents which neighbours to watch, ``neighbourhood`` draws them. ``shells`` passes on the shells
that operators open in cells, ``genomes`` spreads the fleet's genome. ``members`` says who may use the link.

Only ``serve`` imports this room.
"""
