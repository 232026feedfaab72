"""Views for operators: rows of the operators' contract, made from one ``View``.

Pure, and safe to run in a thread, because everything in a view is immutable. ``cells``, ``servers`` and ``status``
show the fleet, ``events`` shows the journal, ``certificates`` shows the life and death of one cell,
``groups`` shows one group, ``plans`` what a change of groups does.
``shapes`` turns rows into the JSON that scripts and the message bus get.

``operators``, ``bus`` and ``cli`` import it.
"""
