"""From what is wanted and what is observed to what to do next: by the present state, never by single changes.

``plan`` walks the keys that have news; ``slots`` is the one loop of order, watch, condemn, replace for every
cell; a ``Carrier`` answers what differs (``containers`` by agents, ``pool_servers`` by providers); ``servers``
looks after servers, ``leftovers`` after what should not be there. All of them write to one ``draft``.

``admission``, ``agenda`` and ``turns`` import it.
"""
