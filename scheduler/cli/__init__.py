"""The operator's command line.

``__main__`` is the entry point. ``app`` collects the commands of ``reading``, ``changing``, ``servers``, ``access``,
``shell`` and ``serving``; ``top`` is the live view. ``client`` talks to the scheduler. ``people`` and
``server_texts`` turn its answers into text and tables, ``views.shapes`` into JSON, and ``output`` prints. Nothing
imports this room.

Slow imports (grpc, pydantic, rich, cryptography) are made where they are needed, so that ``--help`` and the shell's
completion are quick.
"""
