"""Servers out of processes of this machine: for trying things out and for tests."""
