"""Servers from any cloud that Apache Libcloud knows."""
