"""The operators' side: what people and their programs ask (operator.proto).

``api`` is the service: it reads from views and the journal, and asks the controller for everything else.
``shell`` joins an operator's terminal with a cell.
"""
