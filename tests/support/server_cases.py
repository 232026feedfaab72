"""Servers as they are seen, for the tests of each rule on them."""

from dataclasses import dataclass, field

from msgspec.structs import replace
from rpds import HashTrieMap

from galactica.scheduler.core.model.fleet import Death, Fleet, GroupState, Phase, Server
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.spec import Group, GroupKind, RuntimeKind, ServerBody, Spec
from galactica.scheduler.core.model.verdict import Verdict
from galactica.scheduler.core.sight.observations import Answer, ProviderServer, ProviderState
from galactica.scheduler.core.sight.observations import Testimony as Saying
from galactica.scheduler.core.sight.state import ProviderSight, ServerSight, Sight
from galactica.scheduler.core.sight.vitals import Ailment
from galactica.scheduler.core.verdicts.servers import server_verdict

HEARD_AT = 999.0

SAID_AT = 999.25

UP = Server("a", 1, Phase.READY, joined_at=900.0)

MADE = replace(UP, pool="rack")

OPEN = ServerSight("s1", attached_at=900.0, heard_at=HEARD_AT)

CLOSED = replace(OPEN, closed_at=999.5)

RACK = GroupState(
    Group(
        GroupKind.POOL,
        "rack",
        1,
        Spec(RuntimeKind.SERVER, server=ServerBody("p")),
        lease_seconds=8.0,
        cut_off_after_seconds=20.0,
    ),
    "d",
    1,
    (),
)

SAYS = {
    "+": (Answer.ANSWERS, "its agent answers"),
    "x": (Answer.REFUSED, "its kernel answers, but its agent does not"),
    "-": (Answer.SILENT, "no answer to pings"),
}


@dataclass
class Case:
    """``said``: a sign for each neighbour n0, n1, ...; ``unheard``: how many of the first is silent themselves."""

    after: float = 0.5
    said: str = ""
    unheard: int = 0
    server: Server = UP
    seen: ServerSight | None = field(default_factory=lambda: OPEN)
    will_at: float | None = None
    made: ProviderState | None = None
    trusted_since: float = 0.0
    servers: int = 1
    said_at: float = SAID_AT

    def verdict(self) -> Verdict:
        now = HEARD_AT + self.after
        seen = {f"n{n}": ServerSight("n", 900.0, now - (9 if n < self.unheard else 0)) for n in range(9)}
        if self.seen is not None:
            seen["a"] = self.seen
        about = {f"n{n}": Saying("a", SAYS[sign][0], self.said_at) for n, sign in enumerate(self.said)}
        made = {"a": ProviderServer("a", "ref", self.made, "spot")} if self.made else {}
        sight = Sight(
            self.trusted_since,
            HashTrieMap(seen),
            HashTrieMap({"a": HashTrieMap(about)}),
            HashTrieMap({} if self.will_at is None else {"a": self.will_at}),
            HashTrieMap({"p": ProviderSight(HashTrieMap(made))}),
        )
        others = {f"o{n}": UP for n in range(self.servers - 1)}
        groups = {name: living(name, self.server.deaths) for name in ("web", "api")}
        fleet = Fleet(
            groups=HashTrieMap({"rack": RACK, **groups}), servers=HashTrieMap({"a": self.server, **others})
        )
        return server_verdict(fleet, self.server, sight, now, Policy())


def living(name: str, deaths: tuple[Death, ...]) -> GroupState:
    """A service of ten cells elsewhere, with those deaths."""
    group = Group(GroupKind.SERVICE, name, 10, Spec(RuntimeKind.PROCESS))
    own = tuple(death for death in deaths if death.group == name)
    return GroupState(group, "d", 1, (), per_server=HashTrieMap({"b": 10}), deaths=own)


DEATHS = tuple(Death(group, "d", "a", "exited", 990.0) for group in ("web", "api") * 4)

FULL = "its disk is 98.0% full, 97% is the limit"


def ailing(reports: int, seen: ServerSight = OPEN, since: float = 980.0) -> ServerSight:
    return replace(seen, ailing=(Ailment("disk_full", FULL, since, 999.0, reports),))
