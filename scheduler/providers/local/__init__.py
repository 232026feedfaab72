"""Servers that are processes of this machine: for trying Galactica and for tests.

Found by its entry point. Orders come in by ``provider``; lists and failures go out as the port says.
"""
