"""Manifests: YAML in, groups out, or every mistake with file:line:column.

``loading`` is the way in; ``tree`` reads YAML with its positions, ``shape`` and ``pool_shape`` are the pydantic
models of a service and a pool, ``reading`` joins both with the core's validation. Only the command line imports
this room.

A file holds any number of documents. Anchors and aliases work within a document. Tags, duplicate keys, files above 1
MiB and more than 1,000 documents are refused. ``shape`` and ``pool_shape`` have every key with its type, default,
bounds and meaning; docs/reference shows them to readers.
"""
