"""A snapshot is the fleet, whole, or a clear refusal."""

import zlib

import msgspec
import pytest
from rpds import HashTrieMap, HashTrieSet

from galactica.scheduler.core.model.fleet import (
    Backoff,
    Cell,
    CellKind,
    Death,
    Fleet,
    GroupState,
    Maintenance,
    Phase,
    Regrowth,
    Revision,
    Server,
    Silence,
    Slot,
    Start,
    Tally,
    Token,
    UnknownCell,
)
from galactica.scheduler.core.model.spec import (
    ExecProbe,
    Group,
    GroupKind,
    GrpcProbe,
    HealthSpec,
    HttpProbe,
    Placement,
    Resources,
    RuntimeKind,
    Spec,
    Stop,
    TcpProbe,
    digest_of,
)
from galactica.scheduler.core.model.verdict import Health
from galactica.scheduler.journal.snapshot import VERSION, SnapshotDamaged, SnapshotTooNew, decode, encode

PROBES = (
    None,
    HttpProbe("http", "/ok"),
    TcpProbe("http"),
    ExecProbe(("true", "-v")),
    GrpcProbe("http", "web"),
)
SPECS = tuple(
    Spec(
        runtime=RuntimeKind.DOCKER,
        image=f"hello:{number}",
        command=("serve", "--ünicode"),
        ports={"http": 8080},
        env={"GREETING": "hello"},
        resources=Resources(100, 64 << 20, 64),
        health=HealthSpec(probe, 0.1, 0.3, 5, 30.25),
        stop=Stop("SIGINT", 2.5),
        writable=("/var/cache",),
        placement=Placement("none", {"zone": "a"}),
    )
    for number, probe in enumerate(PROBES)
)
DIGESTS = tuple(digest_of(spec) for spec in SPECS)


def cell(slot: int, generation: int, phase: Phase, **more: object) -> Cell:
    name = f"web/{slot}.{generation}"
    fields: dict[str, object] = {
        "server": "server-1",
        "digest": DIGESTS[-1],
        "revision": 5,
        "ordered_at": 1_763_900_000.123456 + slot,
        "resources": Resources(100 + slot, 64 << 20, 7),
        "last_position": 10_000_000_000 + generation,
    }
    return Cell(id=name, group="web", slot=slot, generation=generation, phase=phase, **(fields | more))


SICK = cell(
    0,
    1,
    Phase.DRAINING,
    digest=DIGESTS[0],
    revision=1,
    ready_at=0.1 + 0.2,
    condemned_at=1_763_900_009.3,
    condemned_by="probe_failed",
    condemned_health=Health.SICK,
    replaced_by="web/0.2",
    endpoints={"http": "10.0.0.1:30001"},
    runtime_id="c0ffee",
    dies_at=1_763_900_900.5,
    ports=(80, 443),
)
BURIED = cell(
    1,
    4,
    Phase.DECOMMISSIONED,
    kind=CellKind.SERVER,
    condemned_by="exited",
    condemned_health=Health.DEAD,
    decommissioned_at=7.25,
)
DEATH = Death("web", DIGESTS[0], "server-1", "exited", 99.5)
FULL = Fleet(
    position=10_000_000_007,
    unknown=HashTrieMap(
        {
            "web/7": HashTrieSet([UnknownCell("web/7.3", "server-1"), UnknownCell("web/7.3", "server-2")]),
            "web/8": HashTrieSet([UnknownCell("web/8.3", "server-1"), UnknownCell("web/8.4", "server-1")]),
        }
    ),
    overtaken_at=1_763_900_000.5,
    regrown_at=1_763_900_000.25,
    regrowth=Regrowth(1_763_900_000.75, is_planted=True),
    least_generation=1_001,
    starts=HashTrieMap({11: Start("eleventh", 9_000_000), 12: Start("", 10_000_000)}),
    strange_starts=("lost",),
    shown=HashTrieMap({"server-1": 4}),
    unwanted=HashTrieSet([UnknownCell("web/7.3", "server-2"), UnknownCell("web/8.4", "server-1")]),
    skipped=HashTrieMap({"web": ((1, 4),), "web/7": ((2, 3), (5, 9))}),
    at=1_763_900_010.000001,
    epoch=12,
    groups=HashTrieMap(
        {
            "web": GroupState(
                group=Group(GroupKind.SERVICE, "web", 3, SPECS[-1]),
                digest=DIGESTS[-1],
                revision=5,
                revisions=tuple(
                    Revision(number, digest, spec)
                    for number, (digest, spec) in enumerate(zip(DIGESTS, SPECS, strict=True), 1)
                ),
                first_generation=4,
                slots=HashTrieMap(
                    {
                        0: Slot((SICK, cell(0, 2, Phase.BOOTING, replaces="web/0.1")), 3),
                        1: Slot((), 5),
                        999_999_999: Slot((cell(999_999_999, 4, Phase.READY, ready_at=1.5),), 5),
                    }
                ),
                tally=Tally(1, 2, 3, 4, 5, 6, 7, 8, 9),
                backoff=Backoff(DIGESTS[0], 3, 2, 100.5, 104.5),
                per_server=HashTrieMap({"server-1": 2, "server-2": 1}),
                deleted=True,
                deaths=(DEATH, DEATH),
                longest_lease_seconds=15.5,
                replaced_at=(3.0, 4.0),
                newest_ready_at=5.0,
                last_position=77,
            ),
            "empty": GroupState(Group(GroupKind.SERVICE, "empty", 0, SPECS[0]), DIGESTS[0], 1, ()),
        }
    ),
    servers=HashTrieMap(
        {
            "server-1": Server(
                id="server-1",
                generation=3,
                phase=Phase.CONDEMNED,
                machine="boot/disk",
                labels={"zone": "a"},
                capacity=Resources(8_000, 32 << 30, 4_096),
                disk_bytes=1 << 40,
                runtimes=(RuntimeKind.DOCKER, RuntimeKind.PROCESS),
                agent_version="0.1.0",
                joined_at=5.125,
                condemned_at=6.5,
                condemned_by="operator",
                condemned_health=Health.SUSPECT,
                used=Resources(300, 1, 2),
                cells=HashTrieSet({"web/0.1", "web/0.2"}),
                pool="rack",
                deaths=(DEATH,),
                ports=HashTrieMap({443: 1}),
                maintenance=Maintenance("12-7", 7.5, 307.5),
                last_position=76,
            ),
            "server-2": Server("server-2", 0, Phase.ORDERED),
        }
    ),
    tokens=HashTrieMap({"t1": Token("t1", "5" * 64, 3, 1e9, "rack/0.1")}),
    generations=HashTrieMap({"gone": 8}),
    graves=HashTrieMap({1_999: BURIED, 0: SICK}),
    burials=2_001,
    silences=HashTrieMap({"rack": (Silence("rack/0.1", 8.5), Silence("rack/1.1", 9.5)), "": ()}),
    released=HashTrieMap({"rack": 1e9, "": 2e9}),
)


@pytest.mark.parametrize("fleet", [Fleet(), FULL], ids=["empty", "full"])
def test_fleet_comes_back_exactly(fleet: Fleet) -> None:
    assert decode(encode(fleet)) == fleet


def test_this_fleet_leaves_no_field_of_the_model_at_its_default() -> None:
    """Else a field that the snapshot forgets would pass the test above."""
    web, server = FULL.groups["web"], FULL.servers["server-1"]
    cells = [SICK, BURIED, cell(0, 2, Phase.BOOTING, replaces="web/0.1")]
    for values in ([FULL], [web], [server], [web.tally], [web.backoff], cells):
        kind = type(values[0])
        plain = kind(*_required(kind))
        for field in _optional(kind):
            assert any(getattr(value, field) != getattr(plain, field) for value in values), (kind, field)


def _optional(kind: type) -> tuple[str, ...]:
    """Fields with a default."""
    return tuple(kind.__struct_fields__[-len(kind.__struct_defaults__) :])


def _required(kind: type) -> list[None]:
    return [None] * (len(kind.__struct_fields__) - len(kind.__struct_defaults__))


def test_a_snapshot_from_before_two_servers_could_show_one_id_is_read() -> None:
    """It ends before the fields that were added since."""
    header, body = encode(FULL)[:12], encode(FULL)[12:]
    fields = msgspec.msgpack.decode(zlib.decompress(body))
    added = 3
    fleet = decode(header + zlib.compress(msgspec.msgpack.encode(fields[:-added])))
    assert fleet.unknown["web/7"] == HashTrieSet([UnknownCell("web/7.3", "server-1")])
    assert fleet.unwanted == HashTrieSet([UnknownCell("web/8.4", "server-1")])


def test_newer_snapshot_is_refused_by_its_version() -> None:
    data = encode(FULL)
    newer = data[:8] + (VERSION + 1).to_bytes(4, "big") + data[12:]
    with pytest.raises(
        SnapshotTooNew, match=f"version {VERSION + 1}, but this program reads versions up to {VERSION}"
    ):
        decode(newer)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:11],
        lambda data: data[: len(data) // 2],
        lambda data: b"x" + data[1:],
        lambda data: data[:12] + b"\0" + data[13:],
        lambda data: data[:-6] + bytes([data[-6] ^ 1]) + data[-5:],
        lambda data: data[:8] + bytes(4) + data[12:],
    ],
    ids=["empty", "header cut", "cut", "magic", "body", "one bit", "version 0"],
)
def test_damaged_snapshot_is_refused(damage) -> None:
    with pytest.raises(SnapshotDamaged):
        decode(damage(encode(FULL)))
