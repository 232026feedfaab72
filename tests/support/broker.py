"""A real Mosquitto on loopback, begun and ended by the test that uses it, and one who listens to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiomqtt
import trustme

ACL = Path(__file__).parents[2] / "deploy" / "bus" / "galactica.acl"
LIMIT_SECONDS = 20.0
PASSWORD = "the password"


@dataclass
class Broker:
    """``users`` empty: everybody may do everything. Else each has PASSWORD, and deploy/bus/galactica.acl holds."""

    directory: Path
    users: tuple[str, ...] = ()
    authority: trustme.CA | None = None
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.directory / "mosquitto.log"

    @property
    def ca_file(self) -> Path:
        return self.directory / "ca.pem"

    def url(self, user: str = "") -> str:
        scheme = "mqtts" if self.authority else "mqtt"
        return f"{scheme}://{user}{'@' if user else ''}127.0.0.1:{self.port}"

    def start(self) -> None:
        """Until it takes connections. The port stays the same from life to life."""
        program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
        assert program, "no Mosquitto on this machine: apt-get install mosquitto"
        self.port = self.port or _free_port()
        configuration = self.directory / "mosquitto.conf"
        configuration.write_text("\n".join(self._lines()) + "\n")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([program, "-v", "-c", str(configuration)], stdout=log, stderr=log)
        deadline = time.monotonic() + LIMIT_SECONDS
        while not self._answers():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def _lines(self) -> Iterator[str]:
        yield f"listener {self.port} 127.0.0.1"
        yield "user root"
        if self.authority:
            self.authority.cert_pem.write_to_path(self.ca_file)
            issued = self.authority.issue_cert("127.0.0.1")
            issued.private_key_and_cert_chain_pem.write_to_path(self.directory / "broker.pem")
            yield f"certfile {self.directory}/broker.pem"
            yield f"keyfile {self.directory}/broker.pem"
        if not self.users:
            yield "allow_anonymous true"
            return
        passwords = self.directory / "passwords"
        passwords.write_text("")
        for user in self.users:
            subprocess.run(["mosquitto_passwd", "-b", passwords, user, PASSWORD], check=True)
        yield "allow_anonymous false"
        yield f"password_file {passwords}"
        yield f"acl_file {ACL}"

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def send(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)

    def kill(self) -> None:
        """Fine for one that is stopped, or dead already."""
        if self.process:
            self.process.kill()
            self.process.wait()


@dataclass
class Listener:
    """Everything that came on the topics that it subscribed to, in order."""

    client: aiomqtt.Client
    messages: list[tuple[str, Any]] = field(default_factory=list)
    retained: dict[str, Any] = field(default_factory=dict)
    """Topic to what it holds; of the topics that are retained at all."""

    async def collect(self) -> None:
        async for message in self.client.messages:
            topic, payload = str(message.topic), bytes(message.payload)
            said = _said(payload)
            self.messages.append((topic, said))
            if not payload:
                self.retained.pop(topic, None)
            elif "/events/" not in topic:
                self.retained[topic] = said

    def payloads(self, part: str) -> list[Any]:
        return [said for topic, said in self.messages if part in topic]


def _said(payload: bytes) -> Any:
    try:
        return json.loads(payload) if payload else None
    except (ValueError, RecursionError):
        return payload


@contextlib.asynccontextmanager
async def listening(
    broker: Broker, topic: str = "galactica/#", user: str = "reader"
) -> AsyncIterator[Listener]:
    async with client_of(broker, user) as client:
        await client.subscribe(topic, qos=1)
        listener = Listener(client)
        collecting = asyncio.create_task(listener.collect())
        try:
            yield listener
        finally:
            collecting.cancel()
            await asyncio.gather(collecting, return_exceptions=True)


def client_of(broker: Broker, user: str, will: aiomqtt.Will | None = None) -> aiomqtt.Client:
    return aiomqtt.Client(
        "127.0.0.1",
        broker.port,
        username=user if broker.users else None,
        password=PASSWORD if broker.users else None,
        protocol=aiomqtt.ProtocolVersion.V5,
        tls_params=aiomqtt.TLSParameters(ca_certs=str(broker.ca_file)) if broker.authority else None,
        will=will,
    )


async def until(condition: Callable[[], Any], what: str, seconds: float = LIMIT_SECONDS) -> Any:
    """Wait for a condition; its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.01)
    return value


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
