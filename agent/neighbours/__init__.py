"""Watches a few other hosts with small keyed UDP pings: ``watch`` sends and answers them, ``state`` evaluates them.

``daemon``, ``start`` and ``__main__`` import it.
"""
