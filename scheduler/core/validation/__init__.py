"""Validation of a wanted group: ``services`` and ``pools`` yield every ``Problem`` with its path.

The manifest reader and the operators' side both use these rules, so a file and a call are refused for the same
reasons.

``manifest`` and ``wire`` import it.
"""
