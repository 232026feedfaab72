"""The scheduler: decides which cells live and which go, and remembers why.

Data goes in by ``link`` (agents), ``operators`` (people), ``providers`` and ``bus``, is judged in ``core``, and
becomes records in ``journal``; commands leave by ``link`` and ``providers``, rows for readers by ``views``.
``controller`` is the single writer between them, ``serve`` starts it all, ``cli`` is what people type. Adapters
know the core's types, never each other. The agent shares ``galactica.v1`` with this package and nothing else.
"""
