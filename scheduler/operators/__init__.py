"""The operators' side: calls from people and their programs (operator.proto).

``api`` is the service: it reads from views and the journal, and asks the controller for everything else.
``shell`` connects an operator's terminal with a cell.

Only ``serve`` imports this room.
"""
