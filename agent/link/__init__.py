"""The way to the scheduler (link.proto).

``session`` keeps one stream open, ``wire`` turns protobuf into events and reports into protobuf, ``enrol``,
``identity`` and ``renewal`` keep the certificate, ``logs`` and ``shell`` serve operators, ``will`` speaks for
us on the message bus.
"""
