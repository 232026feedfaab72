"""Watching a few other hosts by small keyed UDP pings: ``watch`` sends and answers them, ``state`` judges."""
