"""Servers by the operator's own program: JSON on its standard input and output."""
