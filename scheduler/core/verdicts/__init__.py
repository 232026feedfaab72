"""What the evidence says at one moment, by ordered tables: the first rule that matches wins, and ``why`` prints
its name.

``cells`` and ``servers`` judge those, ``pools`` a server as a cell of its pool, with ``vitals``, ``blame``,
``storm`` (is it our own sight?) and ``fence`` (has it ended by itself?); ``due`` tells why a healthy cell must
go; ``evidence`` gathers the facts. Read fleet and sight, return verdicts; nothing here acts or remembers.

The rooms above it in the core, ``views`` and ``link`` import it.
"""
