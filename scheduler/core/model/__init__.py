"""The values that everything speaks of: specs, cells, servers, events, commands, requests, policy.

Immutable structs without behaviour beyond what they say of themselves. Imports nothing of ours; everybody
imports it.
"""
