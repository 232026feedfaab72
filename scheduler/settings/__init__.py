"""What programs are told from outside: options, the operator's context file, the broker's address; and exit codes.

Pure data and its readers. Any room may import it.
"""
