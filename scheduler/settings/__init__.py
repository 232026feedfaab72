"""Settings: command-line options, the operator's context file, the broker's address, and exit codes.

Plain data and the functions that read it. Any room may import it.
"""
