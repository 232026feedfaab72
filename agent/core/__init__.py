"""The agent's pure half: events in, instructions out; no IO, clock or chance.

``model`` has the values, ``events`` what happened, ``instructions`` what to do. ``step`` applies one event to the
state. It uses ``cells`` (the life of a cell), ``reporting`` (what the scheduler is told), ``fence`` and ``draft``.

Any room of the agent may import it; it imports only itself.
"""
