"""The agent's side of the connection to the scheduler (link.proto).

``session`` keeps one stream open. ``wire`` converts protobuf to events and reports to protobuf. ``enrol``,
``identity`` and ``renewal`` manage the certificate. ``logs`` and ``shell`` serve operators. ``will`` keeps the agent's
last will on the message bus.

``daemon``, ``start`` and ``__main__`` import it.
"""
