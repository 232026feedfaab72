"""Cells as processes of this host, for machines without an engine.

``runtime`` implements the port. ``launcher`` is a separate program that becomes a cell's keeper.

Only ``start`` imports it. Orders come in by ``runtime``; what cells do goes out as the port's events.
"""
