"""What runs cells: ``port`` says what a runtime is, ``docker`` and ``process`` are runtimes; ``logs`` is for both."""
