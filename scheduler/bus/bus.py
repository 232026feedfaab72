"""The connection to the broker: events and retained health go out, agents' last wills come in.

Nothing is queued here. Events are read from the journal as fast as the broker takes them, so the journal is their
queue. For retained messages the bus compares the wanted ones with those that the broker has, and sends the
differences: it never sends an outdated state. A broker that is slow, dead or faulty only delays these messages; the
fleet does not depend on it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from aiomqtt import Client, MqttError, ProtocolVersion
from aiomqtt.exceptions import MqttConnectError
from msgspec import Struct
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from galactica.scheduler.bus.messages import Here, Lost, Topics, event_payload, read_will, states
from galactica.scheduler.core.model.events import Record
from galactica.scheduler.core.model.fleet import Phase
from galactica.scheduler.core.ports import Mind
from galactica.scheduler.core.sight.observations import WillRead
from galactica.scheduler.settings.broker import BusOptions, tls_context

BATCH = 100
"""How many messages may wait for the broker's acknowledgement at once."""
AGENTS_LIMIT = 100_000
INCOMING_LIMIT = 10_000
INCOMING_BYTES_LIMIT = 64 * 1024
KEEPALIVE_SECONDS = 10
ANSWER_SECONDS = 10.0
WILLS_EVERY_SECONDS = 1.0
"""Least time between two wills of one server that count."""
_REFUSALS = {134, 135}
"""MQTT 5, section 3.2.2.2: bad user name or password, not authorized."""

log = structlog.get_logger("scheduler.bus")


class Pace(Struct, frozen=True):
    """``events_behind``: journal positions; if the bus is further behind, it skips events. ``state_share``: the share
    of the time that may be spent on looking for changed states. ``refused_pause_seconds``: the pause after the broker
    has refused user or password."""

    first_pause_seconds: float = 0.5
    pause_limit_seconds: float = 30.0
    refused_pause_seconds: float = 60.0
    states_every_seconds: float = 1.0
    state_share: float = 0.1
    events_per_second: int = 2_000
    events_behind: int = 100_000


class _Trouble(Struct, frozen=True):
    """Why there is no connection. ``is_refusal``: the broker refuses user or password."""

    reason: str
    is_refusal: bool = False


@dataclass(slots=True)
class _Agent:
    """The state of a server's will. ``here``: the connection that its agent has announced; None: a will does not
    count."""

    here: Here | None = None
    testified_at: float = float("-inf")


class Bus:
    """``run`` publishes the events that become durable after this object was created."""

    def __init__(self, options: BusOptions, mind: Mind, topics: Topics, pace: Pace | None = None) -> None:
        self._options = options
        self._mind = mind
        self._pace = pace or Pace()
        self._topics = topics
        self._tls = tls_context(options)
        self._position = mind.fleet().position + 1
        self._there: dict[str, bytes] = {}
        self._agents: dict[str, _Agent] = {}
        self._trouble: _Trouble | None = None
        self._failures = 0
        self._has_logged_garbage = False
        self.dropped = 0
        """Events that were never published, because the broker was away for too long."""

    async def run(self) -> None:
        """Run until cancelled. No error of a broker ends it."""
        while True:
            trouble = await _until_it_ends(asyncio.create_task(self._converse(), name="bus conversation"))
            self._failures += 1
            if trouble != self._trouble:
                self._trouble = trouble
                log.error("bus_lost", broker=self._options.address.url, reason=trouble.reason)
            await asyncio.sleep(self._pause_seconds(trouble) * random.uniform(0.5, 1.0))  # noqa: S311 - no secret

    def _pause_seconds(self, trouble: _Trouble) -> float:
        pace = self._pace
        if trouble.is_refusal:
            return pace.refused_pause_seconds
        pause = pace.first_pause_seconds * 2.0 ** min(self._failures - 1, 16)
        return min(pace.pause_limit_seconds, pause)

    async def _converse(self) -> _Trouble:
        """One connection from beginning to end. Returns why it ended."""
        try:
            async with self._client() as client:
                await self._serve(client)
        except Exception as error:  # noqa: BLE001 - the task's outermost edge: the fleet works without its bus
            return _trouble_of(error)
        return _Trouble("the broker ended the connection")

    def _client(self) -> Client:
        address = self._options.address
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 0
        properties.MaximumPacketSize = INCOMING_BYTES_LIMIT
        client = Client(
            address.host,
            address.port,
            username=address.user or None,
            password=self._options.password or None,
            # A new id for each connection: noLocal must not hide the messages of an earlier connection.
            identifier=f"galactica-scheduler-{secrets.token_hex(8)}",
            protocol=ProtocolVersion.V5,
            properties=properties,
            tls_context=self._tls,
            keepalive=KEEPALIVE_SECONDS,
            timeout=ANSWER_SECONDS,
            max_queued_incoming_messages=INCOMING_LIMIT,
            logger=_quiet(),
        )
        client.pending_calls_threshold = 4 * BATCH
        return client

    async def _serve(self, client: Client) -> None:
        """Serve until the connection breaks, and raise its error. The bus reads the broker's retained messages again
        for each connection."""
        self._there = {}
        self._agents = {}
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(client), name="bus listen")
            await self._subscribe(client)
            log.info("bus_connected", broker=self._options.address.url)
            self._failures = 0
            self._trouble = None
            tasks.create_task(self._tell_events(client), name="bus events")
            tasks.create_task(self._keep_states(client), name="bus states")

    async def _subscribe(self, client: Client) -> None:
        heard = [(topic, SubscribeOptions(qos=1, noLocal=True)) for topic in self._topics.heard]
        for topic, code in zip(self._topics.heard, await client.subscribe(heard), strict=False):
            if isinstance(code, ReasonCode) and code.is_failure:
                log.error("bus_denies", topic=topic, reason=str(code), hint="see deploy/bus/galactica.acl")

    # --- out: events ----------------------------------------------------------------------------------------------

    async def _tell_events(self, client: Client) -> None:
        while True:
            self._skip_to(self._mind.fleet().position + 1 - self._pace.events_behind)
            async for records in self._mind.feed(self._position):
                self._skip_to(records[0].position)  # the journal keeps events for a while only
                for start in range(0, len(records), BATCH):
                    await self._tell(client, records[start : start + BATCH])
                if self._mind.fleet().position - self._position >= self._pace.events_behind:
                    break

    def _skip_to(self, position: int) -> None:
        """Skip the events before ``position``: they are never published."""
        count = position - self._position
        if count > 0:
            self._position = position
            self.dropped += count
            log.warning("bus_events_dropped", count=count, in_all=self.dropped, next_position=position)

    async def _tell(self, client: Client, records: Sequence[Record]) -> None:
        """Publish the events. They count as published when the broker has acknowledged them all; after a lost
        connection the others are published again."""
        events = (event_payload(record) for record in records)
        await _publish(client, [(self._topics.event(kind), payload) for kind, payload in events])
        self._position = records[-1].position + 1
        # While the bus catches up it leaves most of the event loop to the fleet.
        await asyncio.sleep(len(records) / self._pace.events_per_second)

    # --- out: what is retained ------------------------------------------------------------------------------------

    async def _keep_states(self, client: Client) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            wanted = await asyncio.to_thread(states, self._mind.view(), self._topics)
            took = loop.time() - began
            changes = [
                (topic, payload) for topic, payload in wanted.items() if self._there.get(topic) != payload
            ]
            changes += [(topic, b"") for topic in self._there if topic not in wanted]
            changes += [(self._topics.will(server), b"") for server in self._take_departed()]
            for start in range(0, len(changes), BATCH):
                await self._retain(client, changes[start : start + BATCH])
            await asyncio.sleep(max(self._pace.states_every_seconds, took / self._pace.state_share))

    async def _retain(self, client: Client, changes: Sequence[tuple[str, bytes]]) -> None:
        await _publish(client, changes, retain=True)
        for topic, payload in changes:
            if payload:
                self._there[topic] = payload
            else:
                self._there.pop(topic, None)
        await asyncio.sleep(len(changes) / self._pace.events_per_second)

    def _take_departed(self) -> list[str]:
        """Forget and return the servers that have a message in their will's topic but are not in this fleet (any
        more)."""
        servers = self._mind.fleet().servers
        gone = [
            server
            for server in self._agents
            if server not in servers or servers[server].phase is Phase.DECOMMISSIONED
        ]
        for server in gone:
            del self._agents[server]
        return gone

    # --- in -------------------------------------------------------------------------------------------------------

    async def _listen(self, client: Client) -> None:
        async for message in client.messages:
            topic, payload = str(message.topic), bytes(message.payload)
            server = self._topics.server_of_will(topic)
            if server is not None:
                await self._take_will(server, payload, is_retained=bool(message.retain))
            elif message.retain:
                self._there.setdefault(topic, payload)

    async def _take_will(self, server: str, payload: bytes, *, is_retained: bool) -> None:
        """A will is evidence only if it is of the connection that the agent announced for its current session, and only
        at the moment when it is published: a retained will is old."""
        if not payload:
            self._agents.pop(server, None)
            return
        if server not in self._agents and len(self._agents) >= AGENTS_LIMIT:
            return
        agent = self._agents.setdefault(server, _Agent())
        try:
            message = read_will(payload)
        except ValueError as error:
            self._log_garbage(server, str(error))
            return
        match message:
            case Here():
                agent.here = message
            case Lost(connection=connection):
                here, agent.here = agent.here, None
                if here is None or here.connection != connection:
                    agent.here = here
                elif not is_retained:
                    await self._testify(server, agent, here.session)

    async def _testify(self, server: str, agent: _Agent, session: str) -> None:
        liveness = self._mind.view().sight.servers.get(server)
        now = self._mind.now()
        if liveness is None or liveness.session != session or now - agent.testified_at < WILLS_EVERY_SECONDS:
            return
        agent.testified_at = now
        log.info("will_read", server=server, session=session)
        await self._mind.observe(WillRead(server, now))

    def _log_garbage(self, server: str, reason: str) -> None:
        """Only once, so that garbage on the bus cannot fill the log."""
        if not self._has_logged_garbage:
            self._has_logged_garbage = True
            log.warning("bus_garbage_ignored", topic=self._topics.will(server), reason=reason)


async def _publish(client: Client, messages: Sequence[tuple[str, bytes]], *, retain: bool = False) -> None:
    """Publish in order, and wait until the broker has acknowledged all messages."""
    async with asyncio.TaskGroup() as tasks:
        for topic, payload in messages:
            tasks.create_task(client.publish(topic, payload, qos=1, retain=retain))


async def _until_it_ends(conversation: asyncio.Task[_Trouble]) -> _Trouble:
    """Wait for the conversation's result. If this is cancelled it cancels the conversation, and repeats that: the
    library may swallow a cancellation while the broker answers."""
    try:
        await asyncio.wait({conversation})
    finally:
        while not conversation.done():
            conversation.cancel()
            await asyncio.wait({conversation}, timeout=1.0)
    return conversation.result()


def _trouble_of(error: BaseException) -> _Trouble:
    match error:
        case BaseExceptionGroup():
            return _trouble_of(error.exceptions[0])
        case MqttConnectError(rc=ReasonCode(value=value) as code) if value in _REFUSALS:
            return _Trouble(
                f"the broker refuses user and password ({code}); check --bus and its password", True
            )
        case MqttError() | OSError():
            return _Trouble(str(error) or type(error).__name__)
    log.error("bus_failed", exc_info=error)
    return _Trouble(f"unexpected error: {error!r}")


def _quiet() -> logging.Logger:
    """A disabled logger for the library: this module already logs its errors."""
    logger = logging.getLogger("scheduler.bus.library")
    logger.disabled = True
    return logger
