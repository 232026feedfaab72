"""Manifests: YAML in, groups out, or every mistake with file:line:column.

``loading`` is the entry point. ``tree`` reads YAML with positions, ``shape`` and ``pool_shape`` are the pydantic
models of a service and a pool, and ``reading`` combines them with the core's validation. Only the command line
imports this room.
"""
