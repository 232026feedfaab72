"""Servers from the operator's own program, by JSON on its standard input and output.

Found by its entry point. Orders go to the program as JSON; its answers are checked and come back as the port
says.
"""
