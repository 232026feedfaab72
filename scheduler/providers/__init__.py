"""Providers create and delete servers: a server is a cell too, and its orders are carried out here.

``port`` defines what a provider is. ``configuration`` reads the configured providers. ``runner`` takes the core's
commands and passes each to its ``lane``; the results return as observations. ``provisioning`` gives each new server its
join token. ``local``, ``exec`` and ``cloud`` are kinds of providers. A provider decides nothing. Only ``serve`` imports
this package.
"""
