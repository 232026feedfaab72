"""Cells as processes of this host, for machines without an engine.

``runtime`` is the port's implementation; ``launcher`` is a program of its own that becomes a cell's keeper.
"""
