"""The agent that ``galactica up`` runs beside the scheduler, in its own process."""

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
"""After this many quick ends the cause is permanent. Fewer may be temporary: a server cannot enrol again until its
lease has ended."""
END_SECONDS = 5.0
"""How long the agent may take to detach. With ``stop_cells`` there is no limit here, because the agent limits it."""

log = structlog.get_logger("scheduler.local_agent")


class AgentPlan(Struct, frozen=True):
    """How to run the agent. ``runtime`` empty: the agent chooses."""

    data: Path
    scheduler: str
    enrolment: str
    runtime: str = ""
    labels: Mapping[str, str] = {}
    stop_cells: bool = False
    bus: tuple[str, ...] = ()
    """The agent's options for the message bus, if there is one."""

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
    """Owns the agent's process: starts a new one when the agent ended unexpectedly, and ends it with the scheduler."""

    def __init__(self, plan: AgentPlan, mind: Mind, ca: CertificateAuthority) -> None:
        self._plan = plan
        self._mind = mind
        self._ca = ca
        self._process: asyncio.subprocess.Process | None = None

    async def run(self) -> None:
        """Runs until cancelled. Raises CommandFailed if the agent cannot start."""
        quick_ends = 0
        while True:
            began = time.monotonic()
            code = await self._live()
            if code == EXIT_USAGE:
                raise CommandFailed(
                    "the agent on this machine could not start", hint="See its messages above."
                )
            quick_ends = quick_ends + 1 if time.monotonic() - began < QUICK_SECONDS else 1
            if quick_ends >= QUICK_ENDS_LIMIT:
                raise CommandFailed(
                    f"the agent on this machine ended {quick_ends} times right after its start",
                    hint="See its messages above.",
                )
            pause_seconds = min(PAUSE_LIMIT_SECONDS, PAUSE_FIRST_SECONDS * 2 ** (quick_ends - 1))
            log.warning("agent_ended", exit_code=code, next_in_seconds=pause_seconds)
            await asyncio.sleep(pause_seconds)

    async def end(self) -> None:
        """Ask the agent to end and wait for it. Its cells live on, unless ``stop_cells`` is set."""
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
        """Run the agent once. Returns its exit code."""
        environment = {**os.environ, TOKEN_VARIABLE: await self._token()}
        command: Sequence[str] = [
            sys.executable,
            "-m",
            "galactica.scheduler.serve.tethered",
            str(os.getpid()),
        ]
        # A session of its own: Ctrl-C goes to the scheduler only, which then ends the agent at the right moment.
        self._process = await asyncio.create_subprocess_exec(
            *command, *self._plan.command(), env=environment, start_new_session=True
        )
        return await self._process.wait()

    async def _token(self) -> str:
        """A token for one use within a few minutes. An agent with a valid certificate does not use it."""
        text, token_id, secret_sha256 = new_token(self._ca.digest)
        expires_at = self._mind.now() + TOKEN_SECONDS
        await self._mind.ask(CreateToken(token_id, secret_sha256, 1, expires_at), by=Asker(AskerKind.START))
        return text
