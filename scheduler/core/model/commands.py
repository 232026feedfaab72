"""Intents: what goes out to an agent once the facts behind it are durable. There are two verbs.

Both are idempotent by cell id and may be sent any number of times.
"""

from msgspec import Struct

from galactica.scheduler.core.model.spec import Spec


class Order(Struct, frozen=True):
    server: str
    cell: str
    digest: str
    spec: Spec


class Decommission(Struct, frozen=True):
    server: str
    cell: str
    reason: str


class Resync(Struct, frozen=True):
    """Ask an agent to report everything: something that it sent did not arrive."""

    server: str
    cell: str = ""
    """Always empty: it is about the server as a whole."""


class OrderServer(Struct, frozen=True):
    """To a provider. ``token``: a join token for this one server; the core leaves it empty, since making one takes
    chance, and whoever carries the order to the provider fills it in."""

    provider: str
    cell: str
    spec: Spec
    token: str = ""


class DecommissionServer(Struct, frozen=True):
    provider: str
    cell: str
    ref: str
    reason: str


Command = Order | Decommission | Resync
"""For agents."""

ProviderCommand = OrderServer | DecommissionServer
