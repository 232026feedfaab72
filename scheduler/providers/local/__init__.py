"""Servers that are processes of this machine: for trying Galactica and for tests."""
