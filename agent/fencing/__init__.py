"""Ends exclusive cells when no scheduler confirms that it hears this server.

``keeping`` stores until when they may live. ``watchdog`` is a separate process that ends them if the agent is killed
or frozen.

``daemon`` and ``__main__`` import it; the watchdog runs as a program.
"""
