"""Measurements, by ``make bench``: each module's ``run()`` gives rows of the README's table. Nothing is asserted here.

A figure is shown with its target and with a reference that was measured in the same run, since a machine that is busy
or slow makes both worse. Nothing here is collected by pytest.
"""
