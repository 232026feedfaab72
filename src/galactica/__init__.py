"""Galactica: a fleet in which every server and every container is a disposable cell.

``scheduler`` decides and remembers, ``agent`` runs on each host, and ``v1`` is the contract between them: the Python
code generated from ``proto/``. In the repository the three are links to its top-level folders, so that development
and an installed wheel use the same names.
"""

__version__ = "0.2.0"
