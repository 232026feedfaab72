"""Converts protobuf to model values and back: one file for each .proto, ``cell``, ``link`` and ``operator``.

Incoming messages are checked and bounded here. ``WireError`` says what is wrong with a message.

The rooms that speak protobuf import it: ``link``, ``operators``, ``views`` and ``cli``.
"""
