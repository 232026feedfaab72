"""The runtimes, which run cells: ``port`` defines what a runtime is, ``docker`` and ``process`` implement it, and both
use ``logs``.

The rooms above it import the port; only ``start`` imports a runtime.
"""
