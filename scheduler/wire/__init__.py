"""Where protobuf becomes model values and back: one file for each .proto, ``cell``, ``link`` and ``operator``.

What comes from outside is bounded and checked here; ``WireError`` says what is wrong with it.
"""
