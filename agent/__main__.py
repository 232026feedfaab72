"""``galactica-agent``: the daemon of one host. This module parses the arguments, connects the parts and returns the
exit code.

Exit codes: 0 ended by a signal, 1 refused or failed, 2 wrong usage, 3 cannot reach the scheduler to enrol.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Never

from galactica import __version__
from galactica.agent.daemon import Daemon
from galactica.agent.fencing.keeping import FenceFile, FenceKeeper
from galactica.agent.health.vitals import VitalsTaker, capacity
from galactica.agent.link import wire
from galactica.agent.link.genome import GenomeKeeper
from galactica.agent.link.identity import Identity, IdentityError
from galactica.agent.link.renewal import RenewalRefusedError
from galactica.agent.link.session import Link, RefusedError
from galactica.agent.log import log_to_stderr, tell
from galactica.agent.neighbours.watch import (
    NeighbourWatch,
    joined_address,
)
from galactica.agent.settings import (
    EXIT_DONE,
    EXIT_FAILED,
    WATCH_OFF,
    Settings,
    StartError,
    parser,
    settings_of,
)
from galactica.v1 import cell_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

from galactica.agent.start import (
    available_runtimes,
    enrolled_identity,
    enrolment_address,
    identity_directory,
    instance,
    last_will,
    load_identity,
    machine,
    owned,
    start_watchdog,
    store_obeyed,
    stored_obeyed,
    watch_place,
    watch_socket,
)
from galactica.agent.starved import Lacks

log = logging.getLogger("agent")


def main() -> Never:
    # The agent's own messages about failed handshakes say more than the log of gRPC's core.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    gc.freeze()  # what is loaded stays, so no collection needs to look at it, and none at the end
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Run the agent until it ends. Returns the exit code."""
    arguments = parser().parse_args(argv)
    log_to_stderr(arguments.log_level)
    try:
        settings = settings_of(arguments)
        with owned(settings.data):
            _live(settings)
    except StartError as error:
        return _complain(str(error), error.exit_code)
    except (IdentityError, RefusedError, RenewalRefusedError) as error:
        return _complain(str(error), EXIT_FAILED)
    return EXIT_DONE


def _live(settings: Settings) -> None:
    """Serve until a signal. If the certificate cannot be renewed and a token was given, enrol again, once."""
    identity = load_identity(settings)
    try:
        _run_loop(settings, identity)
    except RenewalRefusedError as refusal:
        if not (settings.token or settings.token_file):
            raise
        log.warning("enrolling again reason=%r", str(refusal))
        _run_loop(settings, enrolled_identity(settings, identity))


def _run_loop(settings: Settings, identity: Identity) -> None:
    """Run the loop. Task groups wrap errors: a refusal by the scheduler is raised without that wrapping."""
    try:
        asyncio.run(_serve(settings, identity))
    except BaseExceptionGroup as group:
        refusal = _refusal_in(group)
        if refusal is None:
            raise
        raise refusal from None


def _refusal_in(group: BaseExceptionGroup[BaseException]) -> RefusedError | RenewalRefusedError | None:
    for error in group.exceptions:
        found = _refusal_in(error) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, RefusedError | RenewalRefusedError):
            return found
    return None


async def _serve(settings: Settings, identity: Identity) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    listening = await asyncio.to_thread(watch_socket, settings)
    runtimes = await available_runtimes(settings, identity)
    lacks = Lacks()
    facts = wire.ServerFacts(
        labels=settings.labels,
        capacity=capacity(settings.data),
        runtimes=tuple(cell_pb2.RuntimeKind.ValueType(kind) for kind in runtimes),
        agent_version=__version__,
        instance=instance(),
        machine=machine(settings.data),
    )
    daemon = Daemon(
        runtimes=runtimes,
        link_to=lambda deliver: Link(
            settings.scheduler,
            enrolment_address(settings, identity),
            identity_directory(settings.data),
            identity,
            deliver,
        ),
        vitals_of=lambda link: VitalsTaker(
            settings.data, tuple(runtimes.values()), lambda: link.clock_offset_ms, lacks=lacks
        ),
        facts=facts,
        genome=GenomeKeeper(settings.data, identity.fleet_id),
        obeyed=stored_obeyed(settings.data),
        remember_obeyed=lambda epoch, start: store_obeyed(settings.data, epoch, start),
        fence=FenceKeeper(FenceFile(settings.data), start_watchdog(settings, identity, facts.runtimes)),
        will=last_will(settings, identity),
        watch_to=lambda deliver: (
            NeighbourWatch(listening, deliver, lacks) if settings.watch != WATCH_OFF else None
        ),
        watch_at=lambda: watch_place(settings),
        maintenance_seconds=settings.maintenance_seconds,
    )
    log.info(
        "started version=%s server=%s fleet=%s scheduler=%s runtimes=%s watch=%s pid=%d",
        __version__,
        identity.server_id,
        identity.fleet,
        settings.scheduler,
        ",".join(cell_pb2.RuntimeKind.Name(kind) for kind in facts.runtimes),
        joined_address(*listening.getsockname()[:2]) if listening else WATCH_OFF,
        os.getpid(),
    )
    try:
        await daemon.run(stop, stops_cells=settings.stops_cells)
    finally:
        for runtime in runtimes.values():
            await runtime.close()
    log.info("ended cells=%s", "stopped" if settings.stops_cells else "still running")


def _complain(message: str, exit_code: int) -> int:
    tell(f"error: {message}")
    return exit_code


if __name__ == "__main__":
    main()
