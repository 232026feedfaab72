"""The agent's pure half: events in, instructions out; no IO, clock or chance.

``model`` has the values, ``events`` what happened, ``instructions`` what to do; ``step`` folds one event into
the state, with the help of ``cells`` (a cell's life), ``reporting`` (what to tell the scheduler), ``fence`` and
``draft``.
"""
