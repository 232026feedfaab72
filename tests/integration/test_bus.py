"""The scheduler's side of the message bus, against a real Mosquitto: what it tells, and what it believes."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
import trustme
from structlog.testing import capture_logs

from galactica.scheduler.bus.bus import Bus, Pace
from galactica.scheduler.bus.messages import Topics
from galactica.scheduler.core.model.requests import ApplyGroups, Asker, DeleteGroup
from galactica.scheduler.core.model.spec import Group, GroupKind, Resources, RuntimeKind, Spec
from galactica.scheduler.core.sight.observations import (
    Attached,
    CellReport,
    CellState,
    Reported,
    ServerFacts,
    WillRead,
)
from galactica.scheduler.settings.broker import BusAddress, bus_options, parse_bus
from galactica.scheduler.views import events as events_views
from galactica.scheduler.views import shapes
from tests.support.broker import PASSWORD, Broker, client_of, listening, until
from tests.support.memory_mind import MemoryMind

FLEET = "alpha"
FLEET_ID = "0123456789abcdef"
ROOT = f"galactica/{FLEET}/{FLEET_ID}"
TOPICS = Topics(FLEET, FLEET_ID)
QUICK = Pace(
    first_pause_seconds=0.05, pause_limit_seconds=0.2, refused_pause_seconds=0.3, states_every_seconds=0.05
)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path)
    broker.start()
    yield broker
    broker.kill()


@asynccontextmanager
async def running_bus(broker, mind, pace=QUICK, user="", password="", ca_file=None) -> AsyncIterator[Bus]:
    bus = Bus(
        bus_options(broker.url(user), ca_file, None, {"GALACTICA_BUS_PASSWORD": password}), mind, TOPICS, pace
    )
    running = asyncio.create_task(bus.run())
    try:
        yield bus
        assert not running.done(), running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def attach(mind: MemoryMind, server: str = "host1", session: str = "7-1") -> None:
    if server not in mind.view().fleet.servers:
        await mind.enrol(server)
    facts = ServerFacts({"zone": "a"}, Resources(8_000, 2**34), 0, (RuntimeKind.PROCESS,), "0.1.0")
    await mind.observe(Attached(server, session, mind.now(), facts))


async def apply(mind: MemoryMind, replicas: int = 2, name: str = "web") -> None:
    spec = Spec(RuntimeKind.PROCESS, command=("serve",), env={"KEY": "a secret"})
    await mind.ask(ApplyGroups((Group(GroupKind.SERVICE, name, replicas, spec),)), Asker.operator("ann"))


async def report(mind: MemoryMind, sequence: int, *cells: str, state: CellState = CellState.RUNNING) -> None:
    digest = mind.view().fleet.groups["web"].digest
    reports = tuple(CellReport(cell, digest, state, "42", {"http": "h:1"}) for cell in cells)
    await mind.observe(Reported("host1", "7-1", sequence, mind.now(), reports))


def positions(listener) -> list[int]:
    return [event["position"] for event in listener.payloads("/events/")]


def payload(**fields: object) -> bytes:
    return json.dumps({"version": 1, **fields}).encode()


async def test_every_event_is_told_in_order_and_shows_no_value_of_an_environment(broker):
    mind = MemoryMind()
    async with listening(broker) as listener, running_bus(broker, mind):
        first = len(mind.records) + 1
        await attach(mind)
        await apply(mind, replicas=150)
        await until(lambda: len(positions(listener)) >= len(mind.records) - first + 1, "all events")
        assert positions(listener) == list(range(first, len(mind.records) + 1))
        records = mind.records[first - 1 :]
        assert listener.payloads("/events/") == [
            {"version": 1, **shapes.event(events_views.event_row(record))} for record in records
        ]
        assert [topic for topic, _ in listener.messages if "/events/" in topic] == [
            f"{ROOT}/events/{type(record.event).__name__}" for record in records
        ]
        assert "a secret" not in json.dumps(listener.messages)


async def test_health_of_every_cell_and_server_is_retained_until_it_is_gone(broker):
    mind = MemoryMind()
    await attach(mind)
    await apply(mind)
    async with running_bus(broker, mind):
        async with listening(broker) as listener:
            await until(lambda: len(listener.retained) == 3, "two cells and a server")
        # One who comes later is told by the broker alone.
        async with listening(broker) as listener:
            await until(lambda: len(listener.retained) == 3, "two cells and a server")
            assert set(listener.retained) == {
                f"{ROOT}/cells/web/0.1", f"{ROOT}/cells/web/1.1", f"{ROOT}/servers/host1",
            }  # fmt: skip
            assert listener.retained[f"{ROOT}/servers/host1"] == {
                "version": 1, "id": "host1", "phase": "READY", "verdict": "healthy", "labels": {"zone": "a"},
                "cells": 2, "agent_version": "0.1.0",
            }  # fmt: skip
            await report(mind, 1, "web/0.1", "web/1.1")
            cell = f"{ROOT}/cells/web/1.1"
            await until(lambda: listener.retained[cell]["phase"] == "READY", "web/1.1 is ready")
            assert listener.retained[cell]["endpoints"] == {"http": "h:1"}
            await mind.ask(DeleteGroup("web"), Asker.operator("ann"))
            await report(mind, 2, "web/0.1", "web/1.1", state=CellState.GONE)
            await until(lambda: set(listener.retained) == {f"{ROOT}/servers/host1"}, "cells are cleared")


async def test_broker_that_was_killed_is_told_anew_how_everything_is(broker):
    mind = MemoryMind()
    await attach(mind)
    async with running_bus(broker, mind):
        async with listening(broker) as listener:
            await apply(mind, 1)
            await until(lambda: len(positions(listener)) == 2, "the first events")
        broker.kill()
        await apply(mind, 40)
        broker.start()
        async with listening(broker) as listener:
            await until(lambda: len(listener.retained) == 41, "everything that is retained")


async def test_events_of_an_absence_are_told_in_order_when_it_ends(broker):
    mind = MemoryMind()
    slow = Pace(first_pause_seconds=4.0, states_every_seconds=0.05)  # the listener is there before the bus
    with capture_logs() as logs:
        async with running_bus(broker, mind, slow) as bus:
            async with listening(broker) as listener:
                await attach(mind)
                await until(lambda: len(positions(listener)) == 3, "the first events")
            broker.kill()
            await until(lambda: [line for line in logs if line["event"] == "bus_lost"], "the bus says so")
            await apply(mind, 30)
            broker.start()
            async with listening(broker) as listener:
                await until(lambda: len(mind.records) in positions(listener), "the newest event")
            assert sorted(set(positions(listener))) == positions(listener)
            # Before them comes again what the broker had not acknowledged when it was killed.
            assert positions(listener)[-31:] == list(range(len(mind.records) - 30, len(mind.records) + 1))
            assert bus.dropped == 0


async def test_who_is_too_far_behind_skips_and_says_how_many(broker):
    mind = MemoryMind()
    broker.kill()
    pace = Pace(first_pause_seconds=0.5, pause_limit_seconds=0.5, states_every_seconds=0.05, events_behind=10)
    with capture_logs() as logs:
        async with running_bus(broker, mind, pace) as bus:
            first = len(mind.records) + 1
            await attach(mind)
            await apply(mind, 40)
            broker.start()
            async with listening(broker) as listener:
                await until(lambda: len(mind.records) in positions(listener), "the newest event")
            assert positions(listener) == list(range(len(mind.records) - 9, len(mind.records) + 1))
            assert bus.dropped == len(mind.records) - 10 - first + 1
    said = [line for line in logs if line["event"] == "bus_events_dropped"]
    assert [line["in_all"] for line in said] == [bus.dropped]


async def test_what_the_broker_retains_of_the_gone_is_cleared(broker):
    mind = MemoryMind()
    await attach(mind)
    async with client_of(broker, "") as before:
        for topic in ("cells/old/0.1", "servers/gone", "wills/gone"):
            await before.publish(
                f"{ROOT}/{topic}", payload(says="here", connection="c", session="s"), 1, True
            )
        await before.publish(
            "galactica/beta/fedcba9876543210/cells/old/0.1", b'{"of": "another fleet"}', 1, True
        )
    async with listening(broker) as listener:
        await until(lambda: len(listener.retained) == 4, "the old ones are there")
        async with running_bus(broker, mind):
            kept = {f"{ROOT}/servers/host1", "galactica/beta/fedcba9876543210/cells/old/0.1"}
            await until(lambda: set(listener.retained) == kept, "only what lives is retained")


async def test_wrong_password_is_told_once_and_tried_again(tmp_path):
    broker = Broker(tmp_path, users=("scheduler", "reader"))
    broker.start()
    try:
        with capture_logs() as logs:
            async with running_bus(broker, MemoryMind(), user="scheduler", password="wrong"):
                await until(lambda: broker.log.read_text().count("not authorised") >= 3, "three attempts")
        (told,) = [line for line in logs if line["log_level"] == "error"]
        assert told["event"] == "bus_lost"
        assert told["reason"].startswith("the broker refuses user and password")
    finally:
        broker.kill()


async def test_a_bus_that_is_cancelled_ends_whatever_the_broker_answers_at_that_moment(tmp_path):
    """The library loses about one in sixty of such cancellations."""
    broker = Broker(tmp_path, users=("scheduler",))
    broker.start()
    options = bus_options(broker.url("scheduler"), None, None, {"GALACTICA_BUS_PASSWORD": "wrong"})
    mind = MemoryMind()
    try:
        for number in range(300):
            running = asyncio.create_task(Bus(options, mind, TOPICS, QUICK).run())
            await asyncio.sleep(0.0001 * number)
            running.cancel()
            _, pending = await asyncio.wait({running}, timeout=10.0)
            for lost in pending:
                lost.cancel()
            assert pending == set()
    finally:
        broker.kill()


async def test_tls_is_spoken_with_a_broker_whose_certificate_the_ca_vouches_for_and_no_other(tmp_path):
    broker = Broker(tmp_path, users=("scheduler", "reader", "host1"), authority=trustme.CA())
    broker.start()
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    mind = MemoryMind()
    await attach(mind)
    try:
        async with listening(broker) as listener:
            with capture_logs() as logs:
                async with running_bus(broker, mind, user="scheduler", password=PASSWORD, ca_file=other):
                    await until(
                        lambda: any("certificate verify failed" in str(line) for line in logs), "it says so"
                    )
            assert listener.messages == []
            async with running_bus(broker, mind, user="scheduler", password=PASSWORD, ca_file=broker.ca_file):
                await until(lambda: f"{ROOT}/servers/host1" in listener.retained, "the server")
    finally:
        broker.kill()


async def test_agent_may_write_its_own_will_and_nothing_else(tmp_path):
    broker = Broker(tmp_path, users=("pool/0.1", "reader"))
    broker.start()
    try:
        async with listening(broker) as listener, client_of(broker, "pool/0.1") as agent:
            for topic in (
                "wills/host2",
                "wills/pool/0.2",
                "cells/web/0.1",
                "events/CellReady",
                "servers/pool/0.1",
            ):
                await agent.publish(f"{ROOT}/{topic}", payload(), 1)
            await agent.publish(f"{ROOT}/wills/pool/0.1", payload(), 1)
            await until(lambda: listener.messages, "its own will")
            assert listener.messages == [(f"{ROOT}/wills/pool/0.1", {"version": 1})]
    finally:
        broker.kill()


async def test_only_the_will_of_the_announced_connection_of_the_current_session_testifies(broker):
    mind = MemoryMind()
    await attach(mind, session="7-2")
    topic = f"{ROOT}/wills/host1"

    def wills() -> list[WillRead]:
        return [one for one in mind.observed if isinstance(one, WillRead)]

    async with client_of(broker, "") as agent:
        # Retained before the scheduler came: old.
        await agent.publish(topic, payload(says="lost", connection="c0"), 1, True)
        async with listening(broker) as listener, running_bus(broker, mind):
            await until(lambda: f"{ROOT}/servers/host1" in listener.retained, "the bus is there")
            nothing = [
                b"\xff\xfe", b"{", b"[" * 20_000, b"null", b'{"says": "lost"}', b'{"version": 1, "says": "dead"}',
                payload(says="lost", connection="c1"),  # never announced
                payload(says="here", connection="c2", session="7-1"),
                payload(says="lost", connection="c2"),  # speaks for a session that is over
                payload(says="here", connection="c3", session="7-2"),
                payload(says="lost", connection="c2"),  # late: another connection followed
                json.dumps({"version": 2, "says": "lost", "connection": "c3"}).encode(),
            ]  # fmt: skip
            for garbage in nothing:
                await agent.publish(topic, garbage, 1)
            await agent.publish(f"{ROOT}/wills/stranger", payload(says="lost", connection="c3"), 1)
            await agent.publish(f"{ROOT}/wills/a+b".replace("+", "%"), b"x", 1)
            assert wills() == []
            await agent.publish(topic, payload(says="lost", connection="c3"), 1, True)
            await until(wills, "the will is read")
            await agent.publish(topic, payload(says="lost", connection="c3"), 1, True)
            await apply(mind)
            await until(lambda: len(listener.retained) >= 3, "what came before that was taken")
            assert [one.server for one in wills()] == ["host1"]


async def test_fleets_name_is_one_level_of_every_topic(broker):
    mind = MemoryMind()
    bus = Bus(bus_options(broker.url(), None, None, {}), mind, Topics("a/b+c #", FLEET_ID), QUICK)
    running = asyncio.create_task(bus.run())
    try:
        async with listening(broker) as listener:
            await attach(mind)
            await until(lambda: listener.retained, "the server")
            assert set(listener.retained) == {
                f"galactica/{quote('a/b+c #', safe=' ')}/{FLEET_ID}/servers/host1"
            }
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_stopped_broker_costs_the_mind_nothing_and_hears_the_rest_when_it_goes_on(broker):
    mind = MemoryMind()
    async with listening(broker) as listener, running_bus(broker, mind):
        await attach(mind)
        await until(lambda: positions(listener), "the bus works")
        broker.send(signal.SIGSTOP)
        try:
            for number in range(50):
                async with asyncio.timeout(5):
                    await apply(mind, 1, f"group-{number}")
                    await asyncio.sleep(0.01)
        finally:
            broker.send(signal.SIGCONT)
        await until(lambda: len(mind.records) in positions(listener), "the newest event")
        seen = list(dict.fromkeys(positions(listener)))
        assert seen == list(range(seen[0], len(mind.records) + 1))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("mqtt://b", BusAddress("mqtt://b", "b", 1_883)),
        ("mqtts://b", BusAddress("mqtts://b", "b", 8_883, is_tls=True)),
        ("mqtt://pool%2F0.1@[::1]:99/", BusAddress("mqtt://pool%2F0.1@[::1]:99/", "::1", 99, "pool/0.1")),
    ],
)
def test_address_of_a_broker_is_read(text, address):
    assert parse_bus(text) == address


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("b:1883", "write mqtt://"),
        ("http://b", "write mqtt://"),
        ("mqtt://", "write mqtt://"),
        ("mqtt://b/topic", "write mqtt://"),
        ("mqtt://b:99999", "out of range"),
        ("mqtt://me:word@b", "ps shows it to everybody"),
    ],
)
def test_address_of_no_broker_is_refused_with_what_to_write(text, says):
    with pytest.raises(ValueError, match=says):
        parse_bus(text)


def test_password_comes_from_its_file_and_needs_a_user(tmp_path):
    file = tmp_path / "password"
    file.write_text("hidden\n")
    assert bus_options("mqtt://me@b", None, file, {"GALACTICA_BUS_PASSWORD": "other"}).password == "hidden"
    assert "hidden" not in repr(bus_options("mqtt://me@b", None, file, {}))
    with pytest.raises(ValueError, match="a password needs a user"):
        bus_options("mqtt://b", None, file, {})
    with pytest.raises(ValueError, match="cannot read the password from"):
        bus_options("mqtt://me@b", None, tmp_path / "none", {})
    with pytest.raises(ValueError, match="cannot use the CA file"):
        bus_options("mqtts://me@b", file, None, {})
