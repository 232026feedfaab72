"""Servers of any cloud for which Apache Libcloud has a driver."""
