"""How many cells may go, or be extra, at once: ``services`` for containers, ``pools`` for servers.

Every answer is ``Allowed`` with the text for the death certificate, or ``Held`` with the rule that ``status``
shows.
"""
