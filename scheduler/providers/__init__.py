"""Who supplies servers. A server is a cell too; here its order is carried out.

``port`` says what a provider is, ``configuration`` reads which there are, ``runner`` takes the core's commands
and hands each to its ``lane``; what comes of them returns as observations. ``provisioning`` gives each new
server its join token. ``local``, ``exec`` and ``cloud`` are kinds of providers. A provider decides nothing.
Only ``serve`` imports this room.
"""
