"""Hosts that beat and are no good: an engine that has ended, a disk that is full. They are replaced first, then go.

Both happen at once, to hosts of different pools: what follows takes its time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.engine import HELLO_1, import_hello_images
from tests.support.lab import Lab, split
from tests.support.processes import Json, pids

CONTAINER = {
    "image": HELLO_1,
    "ports": {"http": 8080},
    "health": {
        "http": {"port": "http", "path": "/"},
        "every": "500ms",
        "timeout": "2s",
        "boot_within": "30s",
    },
}


@dataclass
class Spoiled:
    """A host that is no good since ``position``, the other one of its pool, and the cells that were on either."""

    victim: str
    other: str
    doomed: list[Json]
    spared: list[Json]
    position: int


@dataclass
class Both:
    disk: Spoiled
    engine: Spoiled


@pytest.fixture(scope="module")
def spoiled(lab: Lab) -> Iterator[Both]:
    hosts = lab.pool("engine", engine=True)
    for server in hosts:
        import_hello_images(lab.host(server).engine)
    engine = begin(lab, "engine", hosts, **CONTAINER)
    disk = begin(lab, "disk", lab.pool("disk", disk="64MiB"))
    lab.host(engine.victim).end_engine()
    lab.host(disk.victim).fill_disk()
    lab.fleet.until(lambda: lab.fleet.server(disk.victim)["verdict"] == "suspect", "it is seen")
    lab.begin_scheduler_anew()  # the next one has to see it for itself
    yield Both(disk, engine)
    lab.let_go("engine", "disk")


def begin(lab: Lab, pool: str, hosts: list[str], **spec: object) -> Spoiled:
    victim, other = hosts
    doomed, spared = split(lab.service(pool, **spec), victim)
    return Spoiled(victim, other, doomed, spared, lab.fleet.position())


def rules(lab: Lab, pool: str, after: int) -> dict[str, str]:
    """What was condemned of the pool and its service, and by which rule."""
    return {
        name: rule
        for name, rule in lab.condemned(after).items()
        if name.startswith((f"{pool}/", f"{pool}-web/"))
    }


def test_a_host_whose_disk_is_full_is_replaced_before_it_goes(lab: Lab, spoiled: Both) -> None:
    disk = spoiled.disk
    lab.fleet.until(lambda: disk.victim in rules(lab, "disk", disk.position), "it is condemned")
    assert rules(lab, "disk", disk.position)[disk.victim] == "disk_full"
    after = lab.until_replaced("disk", disk.doomed)
    assert disk.victim not in {cell["server"] for cell in after}
    assert pids(disk.spared).items() <= pids(after).items()
    assert lab.until_well("disk", 2, without=(disk.victim,)) == ["disk/0.2", disk.other]
    told = lab.fleet.events("CellReady", "CellDraining", after=disk.position)
    order = [(event["type"], event["cell"]) for event in told]
    assert order.index(("CellReady", "disk/0.2")) < order.index(("CellDraining", disk.victim)), (
        "replaced first"
    )
    condemned = rules(lab, "disk", disk.position)
    assert condemned.keys() == {disk.victim, *(cell["id"] for cell in disk.doomed)}


def test_a_host_whose_engine_has_ended_gets_no_cells_and_is_replaced(lab: Lab, spoiled: Both) -> None:
    engine = spoiled.engine
    lab.fleet.until(lambda: engine.victim in rules(lab, "engine", engine.position), "it is condemned")
    assert rules(lab, "engine", engine.position)[engine.victim] == "engine_hung"
    lab.fleet.until(lambda: len(lab.fleet.ready("engine-web")) == 2, "its cells are replaced elsewhere")
    after = lab.fleet.ready("engine-web")
    assert engine.victim not in {cell["server"] for cell in after}
    assert {cell["id"] for cell in engine.spared} < {cell["id"] for cell in after}, "the other one's live on"
    assert lab.until_well("engine", 2, without=(engine.victim,)) == ["engine/0.2", engine.other]
    lab.fleet.until(
        lambda: engine.victim not in lab.hosts(), "it goes, although its engine ends no cell", 60.0
    )
    condemned = rules(lab, "engine", engine.position)
    assert [name for name in condemned if name.startswith("engine/")] == [engine.victim]
