"""The journal: the append-only record of everything that was decided.

``port`` says what every journal offers; ``sqlite`` is the embedded one, with its ``opening``, ``tables``,
``writer``, ``reader`` and ``reserve``; ``snapshot`` encodes a whole fleet. The controller alone writes,
adapters read.
"""
