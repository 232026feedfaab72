"""Measurements, by ``make bench``: each module's ``run()`` gives rows of the table in docs/numbers.md. No asserts.

A figure is shown with its target and with a reference that was measured in the same run, since a machine that is busy
or slow makes both worse. Nothing here is collected by pytest.
"""
