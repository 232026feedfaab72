"""Cells as containers of a real Docker Engine. The only room that may import the docker library.

``runtime`` is the port's implementation; ``spec`` turns an order into a container, ``engine`` speaks with the
engine.
"""
