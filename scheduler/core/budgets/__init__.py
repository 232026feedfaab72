"""Budgets: how many cells may go at once and how many extra cells may exist. ``services`` is for containers, ``pools``
for servers.

Every answer is ``Allowed``, with the text for the death certificate, or ``Held``, with the rule that ``status`` shows.

Only ``reconcile`` imports this room.
"""
