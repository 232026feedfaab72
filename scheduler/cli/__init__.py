"""The operator's command line.

``__main__`` is the entry and ``app`` joins the commands of ``reading``, ``changing``, ``access`` and ``serving``;
``top`` is the live view. ``client`` is the way to the scheduler, ``shapes`` turns its answers into the JSON that
scripts rely on, ``people`` into words and tables, ``output`` prints. Nothing imports this room.

What takes long to import (grpc, pydantic, rich, cryptography) is imported where it is needed, so that ``--help`` and
the shell's completion are quick.
"""
