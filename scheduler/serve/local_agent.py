"""The one agent that ``galactica up`` runs beside the scheduler, as a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog
from msgspec import Struct

from galactica.scheduler.core.model.requests import Asker, AskerKind, CreateToken
from galactica.scheduler.core.ports import Mind
from galactica.scheduler.security.ca import CertificateAuthority
from galactica.scheduler.security.tokens import new_token
from galactica.scheduler.settings.errors import CommandFailed

TOKEN_VARIABLE = "GALACTICA_TOKEN"  # noqa: S105 - a name, no token
TOKEN_SECONDS = 300.0
EXIT_USAGE = 2
PAUSE_FIRST_SECONDS = 0.5
PAUSE_LIMIT_SECONDS = 8.0
QUICK_SECONDS = 10.0
QUICK_ENDS_LIMIT = 6
"""An agent that ends so often right after its start has a reason that does not pass by itself. What passes: a server
whose lease has not ended yet cannot enrol anew."""
END_SECONDS = 5.0
"""How long an agent may take to detach; with ``stop_cells`` it takes what its cells take, and bounds that itself."""

log = structlog.get_logger("scheduler.local_agent")


class AgentPlan(Struct, frozen=True):
    """How to run it. ``runtime`` empty: what this machine offers."""

    data: Path
    scheduler: str
    enrolment: str
    runtime: str = ""
    labels: Mapping[str, str] = {}
    stop_cells: bool = False
    bus: tuple[str, ...] = ()
    """Its words about the message bus, if there is one."""

    def command(self) -> list[str]:
        words = [
            sys.executable,
            "-m",
            "galactica.agent",
            "--scheduler",
            self.scheduler,
            "--enrol",
            self.enrolment,
        ]
        words += ["--data", str(self.data)]
        if self.runtime:
            words += ["--runtime", self.runtime]
        for name, value in self.labels.items():
            words += ["--label", f"{name}={value}"]
        if self.stop_cells:
            words.append("--stop-cells")
        return [*words, *self.bus]


class LocalAgent:
    """Owns the process: begins a new one when it ended unasked, and ends it with the scheduler."""

    def __init__(self, plan: AgentPlan, mind: Mind, ca: CertificateAuthority) -> None:
        self._plan = plan
        self._mind = mind
        self._ca = ca
        self._process: asyncio.subprocess.Process | None = None

    async def run(self) -> None:
        """Until cancelled. Raises CommandFailed where the agent cannot begin at all."""
        quick_ends = 0
        while True:
            began = time.monotonic()
            code = await self._live()
            if code == EXIT_USAGE:
                raise CommandFailed(
                    "the agent on this machine could not begin", hint="Its own words are above."
                )
            quick_ends = quick_ends + 1 if time.monotonic() - began < QUICK_SECONDS else 1
            if quick_ends >= QUICK_ENDS_LIMIT:
                raise CommandFailed(
                    f"the agent on this machine ended {quick_ends} times right after its start",
                    hint="Its own words are above.",
                )
            pause_seconds = min(PAUSE_LIMIT_SECONDS, PAUSE_FIRST_SECONDS * 2 ** (quick_ends - 1))
            log.warning("agent_ended", exit_code=code, next_in_seconds=pause_seconds)
            await asyncio.sleep(pause_seconds)

    async def end(self) -> None:
        """Ask it to end and wait until it has. Its cells live on, unless it was told to end them."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(None if self._plan.stop_cells else END_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _live(self) -> int:
        """One life of the agent; answers its exit code."""
        environment = {**os.environ, TOKEN_VARIABLE: await self._token()}
        command: Sequence[str] = [
            sys.executable,
            "-m",
            "galactica.scheduler.serve.tethered",
            str(os.getpid()),
        ]
        # A session of its own: Ctrl-C is for the scheduler, which ends the agent in its order.
        self._process = await asyncio.create_subprocess_exec(
            *command, *self._plan.command(), env=environment, start_new_session=True
        )
        return await self._process.wait()

    async def _token(self) -> str:
        """For one use, soon. An agent that has a valid certificate leaves it unused."""
        text, token_id, secret_sha256 = new_token(self._ca.digest)
        expires_at = self._mind.now() + TOKEN_SECONDS
        await self._mind.ask(CreateToken(token_id, secret_sha256, 1, expires_at), by=Asker(AskerKind.START))
        return text
