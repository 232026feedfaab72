"""Intents: what goes out to an agent or a provider once the facts behind it are durable. There are two verbs.

Both are idempotent by cell id and may be sent any number of times.
"""

from enum import Enum, auto
from typing import ClassVar

from msgspec import Struct

from galactica.scheduler.core.model.spec import Spec


class Verb(Enum):
    """What a command asks for. ``RESYNC`` is a question, and touches no cell."""

    ORDER = auto()
    DECOMMISSION = auto()
    RESYNC = auto()


class Order(Struct, frozen=True):
    verb: ClassVar = Verb.ORDER
    server: str
    cell: str
    digest: str
    spec: Spec


class Decommission(Struct, frozen=True):
    verb: ClassVar = Verb.DECOMMISSION
    server: str
    cell: str
    reason: str


class Resync(Struct, frozen=True):
    """Ask an agent to report everything: something that it sent did not arrive."""

    verb: ClassVar = Verb.RESYNC
    server: str
    cell: str = ""
    """Always empty: it is about the server as a whole."""


class OrderServer(Struct, frozen=True):
    """To a provider. ``token``: a join token for this one server; the core leaves it empty, since making one takes
    chance, and whoever carries the order to the provider fills it in."""

    verb: ClassVar = Verb.ORDER
    provider: str
    cell: str
    spec: Spec
    token: str = ""


class DecommissionServer(Struct, frozen=True):
    verb: ClassVar = Verb.DECOMMISSION
    provider: str
    cell: str
    ref: str
    reason: str


Command = Order | Decommission | Resync
"""For agents."""

ProviderCommand = OrderServer | DecommissionServer
