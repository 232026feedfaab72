"""Runs one scheduler until a signal ends it: ``galactica scheduler``, and ``galactica up`` with an agent beside it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from typing import TextIO, cast

import structlog
from structlog.types import EventDict, Processor

from galactica.scheduler.journal.port import JournalError
from galactica.scheduler.serve.local_agent import AgentPlan, LocalAgent
from galactica.scheduler.serve.scheduler import Scheduler, Setup
from galactica.scheduler.settings.broker import BusOptions
from galactica.scheduler.settings.context import Kept
from galactica.scheduler.settings.errors import CommandFailed, ExitCode
from galactica.scheduler.settings.options import SchedulerOptions, UpOptions, next_port
from galactica.scheduler.settings.streams import LossyStream, open_standard_streams

FLEET = "galactica"


def run_scheduler(options: SchedulerOptions) -> None:
    """``galactica scheduler``: runs until SIGINT or SIGTERM. Raises CommandFailed."""
    setup = Setup(
        options.data,
        options.context,
        options.fleet,
        options.listen,
        options.enrol_listen,
        options.bus,
        options.providers,
        options.regrow,
    )
    _run(setup, None)


def run_up(options: UpOptions) -> None:
    """``galactica up``: runs a scheduler and one agent until SIGINT or SIGTERM. Raises CommandFailed."""
    try:
        enrol_listen = next_port(options.listen)
    except ValueError as error:
        raise CommandFailed(str(error), ExitCode.USAGE) from error
    _run(Setup(options.data, options.context, FLEET, options.listen, enrol_listen, options.bus), options)


def configure_logging() -> None:
    """Readable lines on a terminal, otherwise one JSON object per line; always on standard error, as long as it takes
    them. Libraries' warnings go there too."""
    open_standard_streams()
    is_terminal = sys.stderr.isatty()
    stamps: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        *([] if is_terminal else [structlog.processors.format_exc_info]),
    ]
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=not os.environ.get("NO_COLOR"))
        if is_terminal
        else structlog.processors.JSONRenderer()
    )

    def told(lost: int) -> str:
        event: EventDict = {"event": "log_lines_lost", "count": lost}
        for processor in (*stamps, renderer):
            event = processor(None, "warning", event)  # type: ignore[assignment]  # only the last one makes a text
        return str(event)

    stream = LossyStream(sys.stderr.fileno(), told)
    structlog.configure(
        processors=[*stamps, renderer],
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", stream)),
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=stamps,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def _run(setup: Setup, up: UpOptions | None) -> None:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # our log lines are more useful than gRPC's
    configure_logging()
    try:
        asyncio.run(_serve(setup, up))
    except BaseExceptionGroup as group:
        error = _first(group)
        if isinstance(error, JournalError):
            raise CommandFailed(str(error)) from error
        raise error from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended the task groups."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def _serve(setup: Setup, up: UpOptions | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    scheduler = await Scheduler.open(setup)
    try:
        async with asyncio.TaskGroup() as tasks:
            bus = tasks.create_task(_run_bus(setup, scheduler), name="bus")
            running = [
                tasks.create_task(
                    scheduler.controller.run(scheduler.dispatcher, scheduler.provisioner), name="controller"
                ),
                tasks.create_task(scheduler.dispatcher.genomes.run(), name="genomes"),
                tasks.create_task(scheduler.provisioner.run(), name="provisioner"),
                tasks.create_task(scheduler.providers.run(), name="providers"),
            ]
            await scheduler.begin()
            say(_greeting(setup, scheduler, up))
            if up is None:
                await stop.wait()
            else:
                await _run_agent_until(stop, scheduler, _plan(setup, scheduler, up))
            await scheduler.end()
            bus.cancel()
            for task in running:
                task.cancel()
    finally:
        await scheduler.close()


async def _run_bus(setup: Setup, scheduler: Scheduler) -> None:
    if setup.bus is None:
        return
    from galactica.scheduler.bus.bus import Bus  # noqa: PLC0415 - loaded only if a bus is used
    from galactica.scheduler.bus.messages import Topics  # noqa: PLC0415

    topics = Topics(setup.fleet, scheduler.ca.fleet_id)
    await Bus(setup.bus, scheduler.controller, topics).run()


async def _run_agent_until(stop: asyncio.Event, scheduler: Scheduler, plan: AgentPlan) -> None:
    agent = LocalAgent(plan, scheduler.controller, scheduler.ca)
    try:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(agent.run(), name="agent")
            await stop.wait()
            running.cancel()
    finally:
        if plan.stop_cells:
            say("Ending the cells, then the agent.\n")
        await agent.end()


def say(text: str) -> None:
    """For the person who started it, if anybody reads standard output."""
    LossyStream(sys.stdout.fileno(), str).write(text)


def _plan(setup: Setup, scheduler: Scheduler, up: UpOptions) -> AgentPlan:
    return AgentPlan(
        data=setup.data / "agent",
        scheduler=scheduler.address,
        enrolment=scheduler.enrol_address,
        runtime=up.runtime.value if up.runtime else "",
        labels=up.labels,
        stop_cells=up.stop_cells,
        bus=_bus_words(setup.bus),
    )


def _bus_words(bus: BusOptions | None) -> tuple[str, ...]:
    """The agent's options for the same broker. A password from the environment is inherited, so it is not here."""
    if bus is None:
        return ()
    files = (("--bus-ca", bus.ca_file), ("--bus-password-file", bus.password_file))
    return "--bus", bus.address.url, *(word for name, file in files if file for word in (name, str(file)))


def _greeting(setup: Setup, scheduler: Scheduler, up: UpOptions | None) -> str:
    lines = [
        f"Fleet {setup.fleet} is up. Data: {setup.data}",
        f"  agents and operators: {scheduler.address}",
        f"  enrolment:            {scheduler.enrol_address}",
        f"  admin's context file: {setup.context}",
        *_context_lines(scheduler.kept),
        *_regrow_lines(setup, scheduler),
    ]
    if up is None:
        lines += [
            "To let a server join: run galactica token create here, then galactica-agent --scheduler HOST:PORT there",
            "Ctrl-C ends the scheduler; agents and cells live on.",
        ]
    else:
        lines += [
            "In another terminal: galactica status, galactica apply FILE",
            "Ctrl-C ends the scheduler, the agent and the cells."
            if up.stop_cells
            else "Ctrl-C ends the scheduler and the agent; the cells live on.",
        ]
    return "\n".join(lines) + "\n"


def _regrow_lines(setup: Setup, scheduler: Scheduler) -> list[str]:
    """What to know where the journal is lost, or may be."""
    if scheduler.controller.fleet().regrowth is not None:
        return ["This scheduler is being grown anew from its fleet. How it stands: galactica status"]
    if scheduler.has_new_journal and scheduler.has_old_authority:
        where = setup.data / "ca"
        return [
            f"The CA in {where} is older than the journal, which is empty. If a journal was lost: start with --regrow"
        ]
    return []


def _context_lines(kept: Kept) -> list[str]:
    """What to know of a file that has contexts of other fleets too."""
    if len(kept.contexts.by_name) == 1:
        return []
    if kept.is_current:
        return [f"  its context there:    {kept.name}, now the current one; others: galactica context list"]
    return [f"  its context there:    {kept.name}; to use it: galactica context use '{kept.name}'"]
