"""Events of one cell and the fleets that they make."""

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.events import AnyEvent, Record
from galactica.scheduler.core.model.fleet import Fleet
from galactica.scheduler.core.model.spec import Resources, RuntimeKind, digest_of
from galactica.scheduler.core.model.verdict import Evidence, Health
from galactica.scheduler.core.transitions import apply
from tests.support.world import service, spec

SIZE = Resources(cpu_millis=100, memory_bytes=64, pids=8)

ONE, TWO = digest_of(spec("1")), digest_of(spec("2"))

JOINED = e.ServerJoined("a", 1, {"zone": "x"}, Resources(4_000, 1_024), 9, (RuntimeKind.PROCESS,), "0.1")

ORDERED = e.CellOrdered("web/0.1", ONE, 1, "a", SIZE)

READY = e.CellReady("web/0.1", {"http": "127.0.0.1:80"}, "pid 7")

SICK = e.CellCondemned(
    "web/0.1", Health.SICK, "probe_failed", "ill", (Evidence("agent a", "ill", 5.0),), "one"
)

DEAD = e.CellCondemned("web/0.1", Health.DEAD, "exited", "died", budget="none: it is not wanted")

DRAINING = e.CellDraining("web/0.1")

GONE = e.CellDecommissioned("web/0.1", "agent")


def at(fleet: Fleet, event: AnyEvent) -> Record:
    """The next record; each fact happens one second after the one before."""
    return Record(fleet.position + 1, float(fleet.position + 1), "test", event)


def told(*events: AnyEvent, fleet: Fleet | None = None) -> Fleet:
    after = Fleet() if fleet is None else fleet
    for event in events:
        after = apply(after, at(after, event))
    return after


def begun(replicas: int = 1) -> Fleet:
    """Position 3: a server and a group, nothing ordered."""
    return told(e.ServerEnrolled("a", ""), JOINED, e.GroupApplied(service("web", replicas), ONE, 1))
