"""Servers from the operator's own program, by JSON on its standard input and output."""
