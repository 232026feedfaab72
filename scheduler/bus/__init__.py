"""The message bus: publishes events and the state of the fleet to an optional MQTT 5 broker.

``messages``  topics and payloads, described for readers in docs/bus.md; pure
``bus``       the connection: events and retained health go out, agents' last wills come in

Only ``serve`` imports this package, and the fleet works without it. The bus reads the journal and the controller's
view at its own pace; it keeps no queue of its own.
"""
