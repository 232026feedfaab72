"""Cells as containers of a Docker Engine. Only this package may import the docker library.

``runtime`` implements the port, ``spec`` converts an order to a container, ``engine`` calls the engine.
"""
