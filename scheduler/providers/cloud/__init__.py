"""Servers of any cloud for which Apache Libcloud has a driver.

Found by its entry point. Orders go to the cloud's API in threads; its nodes come back as the port says.
"""
