"""The journal: the append-only record of all decisions.

``port`` defines what every journal offers. ``sqlite`` is the embedded one, with ``opening``, ``tables``, ``writer``,
``reader`` and ``reserve``. ``snapshot`` encodes a whole fleet, in ``snapshot_format``. Only the controller writes;
adapters read.

``controller``, ``serve`` and ``security`` import it; other readers get it handed in.
"""
