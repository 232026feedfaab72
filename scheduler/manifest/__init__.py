"""Manifests: YAML in, groups out, or every mistake at file:line:column.

``loading`` is the way in; ``tree`` reads YAML with its positions, ``shape`` and ``pool_shape`` are the pydantic
models of a service and a pool, ``reading`` joins both with the core's validation. Only the command line imports
this room.
"""
