"""The agent's last will on the message bus: the broker publishes it when this agent's connection breaks.

Loaded only with ``--bus``. docs/bus.md describes the payloads. The agent may write only this topic:

galactica/FLEET/ID/wills/SERVER   retained; {"says": "here"} while connected, {"says": "lost"} as the will, empty
                                  after an orderly end

The will is fixed when a connection begins, but sessions of the link come and go during a connection. So the will names
its connection, and "here" names the session for which that connection speaks. The will of a connection counts only
after its "here" was published, and only until another connection follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import secrets
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from aiomqtt import Client, MqttError, ProtocolVersion
from aiomqtt import Will as MqttWill
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

if TYPE_CHECKING:
    from collections.abc import Mapping

PASSWORD_VARIABLE = "GALACTICA_BUS_PASSWORD"  # noqa: S105 - a name, no password
PASSWORD_BYTES_LIMIT = 4_096
VERSION = 1
KEEPALIVE_SECONDS = 5
"""The broker drops a client after one and a half times this without a message."""
ANSWER_SECONDS = 5.0
GOODBYE_SECONDS = 1.0
PAUSE_FIRST_SECONDS = 0.5
PAUSE_LIMIT_SECONDS = 30.0
REFUSED_PAUSE_SECONDS = 60.0
_REFUSALS = {134, 135}
"""MQTT 5, section 3.2.2.2: bad user name or password, not authorized."""
_PORTS = {"mqtt": 1_883, "mqtts": 8_883}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Broker:
    """Address and credentials of the broker. ``user`` empty: no user."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    tls: ssl.SSLContext | None


def broker(url: str, ca_file: str, password_file: str, environment: Mapping[str, str]) -> Broker:
    """The broker from the command line and the environment; reads the files. Raises ValueError."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"invalid broker address '{url}': {error}") from error
    if parts.scheme not in _PORTS or not host or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError(
            f"invalid broker address '{url}': use mqtt://[USER@]HOST[:PORT], or mqtts:// for TLS"
        )
    if parts.password is not None:
        raise ValueError(
            "a password in the broker's address is visible in ps: "
            f"give it in {PASSWORD_VARIABLE} or with --bus-password-file"
        )
    if ca_file and parts.scheme != "mqtts":
        raise ValueError(f"a CA file needs TLS: use mqtts:// instead of {url}")
    try:
        tls = ssl.create_default_context(cafile=ca_file or None) if parts.scheme == "mqtts" else None
    except OSError as error:
        raise ValueError(f"cannot use the CA file {ca_file}: {error.strerror or error}") from error
    password = _password(password_file) if password_file else environment.get(PASSWORD_VARIABLE, "")
    return Broker(host, port or _PORTS[parts.scheme], unquote(parts.username or ""), password, tls)


async def _until_it_ends(conversation: asyncio.Task[tuple[str, bool]]) -> tuple[str, bool]:
    """Wait for the conversation's result. If this is cancelled it cancels the conversation, and repeats that: the
    library may swallow a cancellation while the broker answers."""
    try:
        await asyncio.wait({conversation})
    finally:
        while not conversation.done():
            conversation.cancel()
            await asyncio.wait({conversation}, timeout=1.0)
    return conversation.result()


class Will:
    """Keeps a connection with a last will for as long as it runs. The agent does not depend on the broker.

    If a password but no user is given, the user is the server's id, as deploy/bus/galactica.acl expects."""

    def __init__(self, broker: Broker, fleet: str, fleet_id: str, server_id: str) -> None:
        self._broker = broker
        self._user = broker.user or (server_id if broker.password else "")
        self._topic = f"galactica/{quote(fleet, safe=' ')}/{fleet_id}/wills/{server_id}"
        self._session = ""
        self._news = asyncio.Event()
        self._trouble = ""

    def attached(self, session: str) -> None:
        """The link has a new session: from now on the will speaks for it."""
        self._session = session
        self._news.set()

    async def run(self) -> None:
        """Run until cancelled. That is the orderly end: the broker then drops the will."""
        await self._news.wait()
        pause_seconds = PAUSE_FIRST_SECONDS
        while True:
            began = time.monotonic()
            conversation = asyncio.create_task(self._converse(), name="bus conversation")
            trouble, is_refusal = await _until_it_ends(conversation)
            if trouble != self._trouble:
                self._trouble = trouble
                log.warning("bus lost broker=%s:%d reason=%r", self._broker.host, self._broker.port, trouble)
            if time.monotonic() - began > PAUSE_LIMIT_SECONDS:
                pause_seconds = PAUSE_FIRST_SECONDS
            limit = REFUSED_PAUSE_SECONDS if is_refusal else pause_seconds
            await asyncio.sleep(limit * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            pause_seconds = min(PAUSE_LIMIT_SECONDS, 2 * pause_seconds)

    async def _converse(self) -> tuple[str, bool]:
        """One connection. Returns why it ended, and whether the broker refused user or password."""
        connection = secrets.token_hex(8)
        try:
            async with self._client(connection) as client:
                await self._hold(client, connection)
        except Exception as error:  # noqa: BLE001 - the task's outermost edge: the agent works without its will
            return _trouble_of(error)
        return "the broker ended the connection", False

    def _client(self, connection: str) -> Client:
        """Each connection has its own client id: with a shared id a new connection would look like a loss."""
        connect = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        connect.SessionExpiryInterval = 0
        delay = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]
        delay.WillDelayInterval = 0
        lost = _payload(says="lost", connection=connection)
        return Client(
            self._broker.host,
            self._broker.port,
            username=self._user or None,
            password=self._broker.password or None if self._user else None,
            identifier=f"galactica-agent-{connection}",
            protocol=ProtocolVersion.V5,
            will=MqttWill(self._topic, lost, qos=1, retain=True, properties=delay),
            properties=connect,
            tls_context=self._broker.tls,
            keepalive=KEEPALIVE_SECONDS,
            timeout=ANSWER_SECONDS,
            logger=_quiet(),
        )

    async def _hold(self, client: Client, connection: str) -> None:
        """Hold the connection until it breaks, and raise its error."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_until_broken(client))
            is_new = True
            try:
                while True:
                    self._news.clear()
                    here = _payload(says="here", connection=connection, session=self._session)
                    await client.publish(self._topic, here, qos=1, retain=True)
                    if is_new:
                        log.info("bus connected broker=%s:%d", self._broker.host, self._broker.port)
                    is_new, self._trouble = False, ""
                    await self._news.wait()
            except asyncio.CancelledError:
                with contextlib.suppress(MqttError):
                    await client.publish(self._topic, b"", qos=1, retain=True, timeout=GOODBYE_SECONDS)
                raise


async def _until_broken(client: Client) -> None:
    async for _ in client.messages:
        pass  # there is no subscription


def _payload(**fields: str) -> bytes:
    return json.dumps({"version": VERSION, **fields, "at": time.time()}).encode()


def _password(file: str) -> str:
    try:
        with Path(file).open("rb") as opened:
            return opened.read(PASSWORD_BYTES_LIMIT).decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ValueError(f"cannot read the password from {file}: {why}") from error


def _trouble_of(error: BaseException) -> tuple[str, bool]:
    match error:
        case BaseExceptionGroup():
            return _trouble_of(error.exceptions[0])
        case MqttConnectError(rc=ReasonCode(value=value) as code) if value in _REFUSALS:
            return f"the broker refuses user and password ({code})", True
        case MqttError() | OSError():
            return str(error) or type(error).__name__, False
    log.error("bus failed: unexpected error", exc_info=error)
    return f"unexpected error: {error!r}", False


def _quiet() -> logging.Logger:
    """A disabled logger for the library: this module already logs its errors."""
    logger = logging.getLogger("agent.will.library")
    logger.disabled = True
    return logger
