"""Watches a few other hosts with small keyed UDP pings: ``watch`` sends and answers them, ``state`` evaluates them."""
