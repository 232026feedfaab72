"""The message bus: an optional MQTT 5 broker that hears what happens and how everything is.

``messages``  topics and payloads, described for readers in docs/bus.md; pure
``bus``       the connection: events and retained health go out, agents' last wills come in

Nobody but ``scheduler.serve`` knows of it, and the fleet lives on without it: the bus reads the journal and the
controller's view at its own pace, and what it has to say waits there and nowhere else.
"""
