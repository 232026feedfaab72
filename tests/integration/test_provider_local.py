"""Servers that are processes of this machine: real agents that join a scheduler's end of the link."""

import asyncio
import os
import signal
from contextlib import asynccontextmanager

import pytest

from galactica.scheduler.core.model.commands import DecommissionServer, OrderServer
from galactica.scheduler.core.model.spec import RuntimeKind, ServerBody, Spec
from galactica.scheduler.core.sight.observations import (
    ProviderServer,
    ProviderState,
    ServerMade,
    ServerNotMade,
    ServerUnmade,
)
from galactica.scheduler.providers.lane import RunnerLimits
from galactica.scheduler.providers.local import processes
from galactica.scheduler.providers.local import provider as local_module
from galactica.scheduler.providers.port import ProviderRefused, ProviderUnavailable, Setting
from tests.support.agent_world import fake_scheduler, pid_of, until
from tests.support.orders import order
from tests.support.processes import is_alive
from tests.support.provider_world import CELL, FLEET, ListeningMind, body, runner_with, user_data

PROCESS = '{"runtime": "process"}'


@asynccontextmanager
async def world(tmp_path):
    """A scheduler's end of the link, and a way to make providers whose servers are gone at the end."""
    async with fake_scheduler(tmp_path / "ca") as scheduler:
        try:
            yield scheduler
        finally:
            provider = provider_in(tmp_path)
            for server in await provider.list():
                await provider.decommission(server.ref, server.cell)
            await provider.close()


def provider_in(tmp_path, **options):
    return local_module.make(Setting("it", FLEET, tmp_path / "servers", {"stop_seconds": 5, **options}))


def data_of(scheduler, **changes):
    enrolment = f"127.0.0.1:{scheduler.enrol_port}"
    return user_data(scheduler=scheduler.address, enrolment=enrolment, token=scheduler.token, **changes)


def pid_in(ref):
    return int(ref.removeprefix("pid:"))


def order_server(scheduler, text=PROCESS, cell=CELL):
    spec = Spec(RuntimeKind.SERVER, server=ServerBody("it", text, {"zone": "a"}))
    return OrderServer("it", cell, spec, scheduler.token)


def runner_for(provider, mind, scheduler, **more):
    enrolment = f"127.0.0.1:{scheduler.enrol_port}"
    return runner_with(provider, mind, scheduler=scheduler.address, enrolment=enrolment, **more)


async def gone(provider):
    async with asyncio.timeout(20):
        while (seen := (await provider.list())[0]).state is not ProviderState.GONE:
            await asyncio.sleep(0.01)
    return seen


async def test_ordered_server_joins_with_its_cell_id_and_labels_and_nobody_sees_its_token(tmp_path):
    async with world(tmp_path) as scheduler:
        provider = provider_in(tmp_path)
        ref = await provider.order(CELL, body(PROCESS), data_of(scheduler))
        session = await scheduler.until_sessions(1)
        assert (session.server, dict(session.hello.labels)) == (CELL, {"zone": "a"})
        assert await provider.list() == (ProviderServer(CELL, ref, ProviderState.RUNNING),)
        command_line = (await asyncio.to_thread(open, f"/proc/{pid_in(ref)}/cmdline")).read()
        assert scheduler.token not in command_line
        await provider.close()


async def test_a_repeated_order_makes_no_second_server_even_when_the_first_has_died(tmp_path):
    async with world(tmp_path) as scheduler:
        provider = provider_in(tmp_path)
        refs = [await provider.order(CELL, body(PROCESS), data_of(scheduler)) for _ in range(2)]
        os.kill(pid_in(refs[0]), signal.SIGKILL)
        await gone(provider)
        refs.append(await provider.order(CELL, body(PROCESS), data_of(scheduler)))
        assert len(set(refs)) == 1
        await provider.close()


async def test_killed_server_is_told_of_at_once_and_none_of_its_cells_is_left(tmp_path):
    """By itself: nobody would ask for a list within the hour."""
    mind, limits = ListeningMind(), RunnerLimits(sweep_seconds=3_600)
    async with (
        world(tmp_path) as scheduler,
        runner_for(provider_in(tmp_path), mind, scheduler, limits=limits) as runner,
    ):
        runner.send([order_server(scheduler)])
        made = (await mind.until(lambda: mind.of(ServerMade)))[0]
        session = await scheduler.until_sessions(1)
        session.instruct(order("web/0.1"))
        cell = pid_of(await session.until_state("web/0.1", 2))
        await mind.until(lambda: mind.listed)
        os.kill(pid_in(made.ref), signal.SIGKILL)
        (seen,) = await mind.until(lambda: mind.listed[0].state is ProviderState.GONE and mind.listed)
        assert not is_alive(cell)
        assert (seen.cell, seen.ref) == (CELL, made.ref)
        assert seen.reason.startswith("its agent was killed by SIGKILL")


async def test_servers_outlive_the_scheduler_and_the_next_one_knows_them_again(tmp_path):
    async with world(tmp_path) as scheduler:
        first = provider_in(tmp_path)
        ref = await first.order(CELL, body(PROCESS), data_of(scheduler))
        await scheduler.until_sessions(1)
        await first.close()
        second = provider_in(tmp_path)
        assert await second.list() == (ProviderServer(CELL, ref, ProviderState.RUNNING),)
        assert await second.order(CELL, body(PROCESS), data_of(scheduler)) == ref
        os.kill(pid_in(ref), signal.SIGKILL)
        assert (await gone(second)).ref == ref
        await second.close()


async def test_server_that_died_while_no_scheduler_looked_is_gone_with_its_cells(tmp_path):
    async with world(tmp_path) as scheduler:
        first = provider_in(tmp_path)
        ref = await first.order(CELL, body(PROCESS), data_of(scheduler))
        session = await scheduler.until_sessions(1)
        session.instruct(order("web/0.1"))
        cell = pid_of(await session.until_state("web/0.1", 2))
        await first.close()
        os.kill(pid_in(ref), signal.SIGKILL)
        await until(lambda: not is_alive(pid_in(ref)), "the agent has ended")
        assert is_alive(cell)
        second = provider_in(tmp_path)
        assert (await gone(second)).ref == ref
        assert not is_alive(cell)
        await second.close()


async def test_server_whose_record_cannot_be_read_is_in_doubt_until_it_can_and_hides_no_other(tmp_path):
    async with world(tmp_path) as scheduler:
        first = provider_in(tmp_path)
        ref = await first.order(CELL, body(PROCESS), data_of(scheduler))
        await first.close()
        unreadable = tmp_path / "servers/pool.1.1/server.json"
        unreadable.mkdir(parents=True)
        second = provider_in(tmp_path)
        running = ProviderServer(CELL, ref, ProviderState.RUNNING)
        seen, doubtful = await second.list()
        assert (seen, doubtful.cell, doubtful.state) == (running, "pool/1.1", ProviderState.UNREADABLE)
        assert doubtful.reason.startswith("pool/1.1: [Errno 21] Is a directory")
        for asked in (
            second.order("pool/1.1", body(PROCESS), data_of(scheduler)),
            second.decommission("", "pool/1.1"),
        ):
            with pytest.raises(ProviderUnavailable, match="cannot tell what there is of server pool/1.1"):
                await asked
        unreadable.rmdir()
        assert await second.list() == (running,)
        await second.close()


async def test_agent_that_began_just_before_the_scheduler_ended_is_found_without_its_record(tmp_path):
    async with world(tmp_path) as scheduler:
        first = provider_in(tmp_path)
        ref = await first.order(CELL, body(PROCESS), data_of(scheduler))
        await scheduler.until_sessions(1)
        await first.close()
        (tmp_path / "servers/pool.0.1/server.json").unlink()
        second = provider_in(tmp_path)
        assert await second.list() == (ProviderServer(CELL, ref, ProviderState.RUNNING),)
        await second.close()


async def test_decommission_ends_agent_and_cells_and_leaves_no_file(tmp_path):
    mind = ListeningMind()
    async with world(tmp_path) as scheduler, runner_for(provider_in(tmp_path), mind, scheduler) as runner:
        runner.send([order_server(scheduler)])
        made = (await mind.until(lambda: mind.of(ServerMade)))[0]
        session = await scheduler.until_sessions(1)
        session.instruct(order("web/0.1"))
        cell = pid_of(await session.until_state("web/0.1", 2))
        runner.send([DecommissionServer("it", CELL, made.ref, "a test wants it")])
        await mind.until(lambda: mind.of(ServerUnmade))
        assert not is_alive(cell)
        assert not is_alive(pid_in(made.ref))
        assert list((tmp_path / "servers").iterdir()) == []
        await mind.until(lambda: mind.listed == ())


async def test_frozen_agent_is_killed_after_its_time_and_nothing_is_left(tmp_path):
    async with world(tmp_path) as scheduler:
        provider = provider_in(tmp_path, stop_seconds=0.2)
        ref = await provider.order(CELL, body(PROCESS), data_of(scheduler))
        await scheduler.until_sessions(1)
        os.kill(pid_in(ref), signal.SIGSTOP)
        await provider.decommission(ref, CELL)
        assert not is_alive(pid_in(ref))
        assert await provider.list() == ()
        await provider.close()


async def test_decommission_of_what_never_was_is_fine(tmp_path):
    provider = provider_in(tmp_path)
    await provider.decommission("", "pool/7.7")
    assert await provider.list() == ()
    await provider.close()


async def test_agent_that_cannot_join_is_gone_with_its_last_words(tmp_path):
    async with world(tmp_path):
        provider = provider_in(tmp_path)
        await provider.order(CELL, body(PROCESS), user_data())
        seen = await gone(provider)
        assert "ended with exit code" in seen.reason
        assert "error: " in seen.reason
        await provider.close()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            '{"runtme": "process"}',
            "the pool's server: runtme: Extra inputs are not permitted (known: runtime, listen_host)",
        ),
        ('{"runtime": "vm"}', "the pool's server: runtime: Input should be 'process', 'docker' or ''"),
        ("[]", "the pool's server must be a JSON object"),
    ],
)
async def test_wrong_body_is_refused_for_good_and_says_why(tmp_path, text, says):
    mind = ListeningMind()
    async with world(tmp_path) as scheduler, runner_for(provider_in(tmp_path), mind, scheduler) as runner:
        runner.send([order_server(scheduler, text)])
        refused = (await mind.until(lambda: mind.of(ServerNotMade)))[0]
        assert refused.reason.startswith(says)
        assert not (tmp_path / "servers").exists()


async def test_server_directory_that_cannot_be_made_is_told_as_something_for_later(tmp_path):
    (tmp_path / "servers").write_text("a file is in the way")
    provider = provider_in(tmp_path)
    with pytest.raises(ProviderUnavailable, match="cannot start an agent in .*pool.0.1"):
        await provider.order(CELL, body(PROCESS), user_data())
    (tmp_path / "servers").unlink()
    await provider.close()


async def test_a_shell_that_stands_in_a_server_directory_does_not_belong_to_it(tmp_path):
    shell = await asyncio.create_subprocess_exec("sleep", "60", cwd=tmp_path, env={"PWD": str(tmp_path)})
    try:
        await asyncio.to_thread(processes.kill_all_of, tmp_path)
        assert is_alive(shell.pid)
    finally:
        shell.kill()
        await shell.wait()


def test_unknown_options_of_the_configuration_are_refused(tmp_path):
    with pytest.raises(ProviderRefused, match=r"options: speed: Extra inputs are not permitted"):
        provider_in(tmp_path, speed=3)
