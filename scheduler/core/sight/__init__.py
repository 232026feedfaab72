"""What is observed: news from agents and providers, folded into one ``Sight``.

``observations`` are what comes in, ``observe`` folds one in and tells which keys it concerns, ``state`` is what
is known of agents and providers, ``vitals`` which of a server's vitals are bad. Nothing here is journaled, and
nothing judges.

The rooms above it in the core, and the adapters that make observations, import it.
"""
