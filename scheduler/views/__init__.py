"""What readers see: rows of the operators' contract, made from one ``View``.

Pure, and safe to run in a thread, since everything in a view is immutable. ``cells``, ``servers`` and
``status`` show the fleet, ``events`` the journal, ``certificates`` the life and death of one cell.
"""
