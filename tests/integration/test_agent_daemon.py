"""The whole agent, as a process of its own, against a real scheduler's end of the link with mTLS."""

import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import psutil
import pytest

from galactica.v1 import cell_pb2, link_pb2
from tests.support.agent_world import AgentWorld, FakeScheduler, agent_world, pid_of, until
from tests.support.orders import CELL, decommission, http_server, order
from tests.support.processes import is_alive

RUNNING = cell_pb2.CELL_STATE_RUNNING
GONE = cell_pb2.CELL_STATE_GONE


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[AgentWorld]:
    async with agent_world(tmp_path) as world:
        yield world


async def test_agent_enrols_with_its_token_and_says_who_and_how_large_it_is(world: AgentWorld) -> None:
    agent = world.agent("--id", "host1", "--label", "zone=a", GALACTICA_TOKEN=world.scheduler.token)
    agent.start()
    session = await world.scheduler.until_sessions(1)
    assert session.server == "host1"
    hello = session.hello
    assert (hello.wire_version, hello.newest_wire_version) == (1, 2)
    assert (dict(hello.labels), list(hello.runtimes)) == ({"zone": "a"}, [1])
    assert hello.capacity.memory_bytes == psutil.virtual_memory().total
    assert hello.capacity.cpu_millis == 1_000 * (os.cpu_count() or 1)
    await until(lambda: any(one.HasField("vitals") for one in session.reports), "vitals")
    code, said = await agent.ended()
    assert code == 0
    assert "event=ended cells=still running" in said


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "message"),
    [
        ((), {}, 2, "this server is not enrolled and needs a join token"),
        ((), {"GALACTICA_TOKEN": "nonsense"}, 2, "invalid join token"),
        (("--label", "zone"), {}, 2, "invalid label 'zone': use KEY=VALUE"),
        (("--scheduler", "nowhere"), {}, 2, "invalid address 'nowhere': use HOST:PORT"),
        (("--token-file", "/no/such/file"), {}, 2, "cannot read the token from /no/such/file"),
    ],
)
async def test_agent_that_cannot_begin_says_why_in_one_line(
    world: AgentWorld, arguments: tuple[str, ...], environment: dict[str, str], code: int, message: str
) -> None:
    agent = world.agent(*arguments, **environment)
    agent.start()
    ended, said = await agent.ended(None)
    (line,) = said.splitlines()
    assert (ended, line[: len("error: ") + len(message)]) == (code, f"error: {message}")


async def test_used_up_token_is_refused_with_the_schedulers_words(world: AgentWorld) -> None:
    wrong = world.scheduler.token.replace("c2VjcmV0", "b3RoZXI")
    agent = world.agent(GALACTICA_TOKEN=wrong)
    agent.start()
    code, said = await agent.ended(None)
    assert code == 1
    assert "the token is unknown, used up or expired" in said


async def test_second_agent_on_one_data_directory_is_refused(world: AgentWorld) -> None:
    world.enrolled().start()
    await world.scheduler.until_sessions(1)
    second = world.agent()
    second.start()
    code, said = await second.ended(None)
    assert (code, said) == (
        1,
        (
            f"error: another agent already uses the data directory {world.data}; give this agent a different one"
            " with --data\n"
        ),
    )


async def test_cell_is_ordered_once_runs_dies_and_is_gone(world: AgentWorld) -> None:
    world.enrolled().start()
    report = await world.running()
    session = world.scheduler.session
    session.instruct(order(CELL))
    os.kill(pid_of(report), signal.SIGKILL)
    death = await session.until_state(CELL, cell_pb2.CELL_STATE_EXITED)
    assert (death.autopsy.signal, death.digest) == ("SIGKILL", f"digest of {CELL}")
    session.instruct(decommission(CELL))
    await session.until_state(CELL, GONE)
    session.instruct(decommission(CELL))
    await until(
        lambda: sum(1 for r in session.reports for c in r.cells if c.state == GONE) >= 2, "a second GONE"
    )
    states = [cell.state for one in session.reports for cell in one.cells if cell.state != 1]
    assert states == sorted(states)
    assert not is_alive(pid_of(report))


async def test_death_is_told_at_once_and_not_with_the_next_beat(world: AgentWorld) -> None:
    world.scheduler.beat_ms = 600_000
    world.scheduler.lease_ms = 3_600_000
    world.enrolled().start()
    report = await world.running()
    os.kill(pid_of(report), signal.SIGKILL)
    await world.scheduler.session.until_state(CELL, cell_pb2.CELL_STATE_EXITED)


async def test_command_that_is_not_there_is_a_failed_cell_with_its_reason(world: AgentWorld) -> None:
    world.enrolled().start()
    session = await world.scheduler.until_sessions(1)
    session.instruct(order(CELL, "/no/such/command"))
    failed = await session.until_state(CELL, cell_pb2.CELL_STATE_FAILED)
    assert "/no/such/command" in failed.autopsy.reason
    session.instruct(decommission(CELL))
    await session.until_state(CELL, GONE)


async def test_runtime_that_this_server_does_not_have_is_a_failed_cell(world: AgentWorld) -> None:
    world.enrolled().start()
    session = await world.scheduler.until_sessions(1)
    wrong = order(CELL)
    wrong.order.spec.runtime = cell_pb2.RUNTIME_KIND_DOCKER
    session.instruct(wrong)
    failed = await session.until_state(CELL, cell_pb2.CELL_STATE_FAILED)
    assert failed.autopsy.reason == "this server does not offer the cell's runtime"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_agent_that_ends_and_returns_takes_its_cells_over(
    world: AgentWorld, how: signal.Signals
) -> None:
    agent = world.enrolled()
    agent.start()
    before = await world.running()
    await agent.ended(how)
    assert is_alive(pid_of(before))
    agent.start()
    session = await world.scheduler.until_sessions(2)
    (after,) = session.hello.inventory
    assert (after.cell_id, after.state, after.runtime_id) == (CELL, RUNNING, before.runtime_id)
    session.instruct(order(CELL))
    await until(lambda: len(session.reports) > 2, "some reports")
    assert session.cells[CELL].runtime_id == before.runtime_id


async def test_cell_that_died_while_no_agent_was_there_is_told_with_its_autopsy(world: AgentWorld) -> None:
    agent = world.enrolled()
    agent.start()
    report = await world.running()
    await agent.ended(signal.SIGKILL)
    os.kill(pid_of(report), signal.SIGKILL)
    agent.start()
    session = await world.scheduler.until_sessions(2)
    assert [one.cell_id for one in session.hello.inventory] == [CELL]
    dead = await session.until_state(CELL, cell_pb2.CELL_STATE_EXITED)
    assert dead.autopsy.signal == "SIGKILL"


async def test_stop_cells_ends_them_and_says_so_before_it_leaves(world: AgentWorld) -> None:
    world.scheduler.identity(world.data / "identity", "host1")
    agent = world.agent("--stop-cells")
    agent.start()
    report = await world.running()
    code, _ = await agent.ended()
    assert code == 0
    assert not is_alive(pid_of(report))
    await world.scheduler.session.until_state(CELL, GONE)


async def test_cells_outlive_a_scheduler_that_goes_away_and_the_next_hello_names_them(
    world: AgentWorld,
) -> None:
    world.enrolled().start()
    report = await world.running()
    await world.scheduler.stop()
    assert is_alive(pid_of(report))
    await world.scheduler.start()
    session = await world.scheduler.until_sessions(2)
    (known,) = session.hello.inventory
    assert (known.runtime_id, known.state) == (report.runtime_id, RUNNING)
    assert session.hello.epoch == 1


async def test_scheduler_of_a_lower_epoch_is_left_even_by_the_agents_next_life(world: AgentWorld) -> None:
    world.scheduler.epoch = 5
    agent = world.enrolled()
    agent.start()
    await world.scheduler.until_sessions(1)
    await until((world.data / "epoch").exists, "the epoch on disk")
    await agent.ended(signal.SIGKILL)
    world.scheduler.epoch = 4
    agent.start()
    session = await world.scheduler.until_sessions(2)
    session.instruct(order(CELL))
    await until(lambda: session.is_over, "the agent to leave")
    assert session.hello.epoch == 5
    assert session.cells == {}


async def test_agent_tells_which_scheduler_it_has_obeyed_and_how_far_its_journal_went(
    world: AgentWorld,
) -> None:
    world.scheduler.epoch, world.scheduler.start_name, world.scheduler.position = 5, "first", 70
    agent = world.enrolled()
    agent.start()
    session = await world.scheduler.until_sessions(1)
    world.scheduler.position = 71  # which an echo tells
    await until(lambda: sum(bool(report.sent_at) for report in session.reports) > 1, "echoes")
    session.outgoing.put_nowait(None)
    hello = (await world.scheduler.until_sessions(2)).hello
    assert (hello.epoch, hello.start, hello.position) == (5, "first", 71)
    await until((world.data / "epoch").exists, "the epoch on disk")
    await agent.ended(signal.SIGKILL)
    agent.start()
    hello = (await world.scheduler.until_sessions(3)).hello
    assert (hello.epoch, hello.start, hello.position) == (5, "first", 0)


async def test_pauses_grow_while_sessions_end_right_after_their_welcome(world: AgentWorld) -> None:
    world.scheduler.epoch = 5
    agent = world.enrolled()
    agent.start()
    await world.scheduler.until_sessions(1)
    await until((world.data / "epoch").exists, "the epoch on disk")
    await agent.ended(signal.SIGKILL)
    world.scheduler.epoch = 4  # welcomes the agent, which refuses it
    agent.start()
    await world.scheduler.until_sessions(7)
    _, said = await agent.ended()
    pauses = [float(one) for one in re.findall(r"next_in_seconds=([\d.]+)", said)]
    assert all(later > 1.5 * earlier for earlier, later in zip(pauses[:5:2], pauses[2:6:2], strict=False)), (
        pauses
    )


async def test_an_epoch_that_cannot_be_written_down_ends_no_agent(world: AgentWorld) -> None:
    world.scheduler.epoch = 5
    (world.data / "start.new").mkdir(parents=True)  # no file can be written there, as none can on a full disk
    agent = world.enrolled()
    agent.start()
    await world.scheduler.until_sessions(1)
    await world.running(CELL)
    assert agent.process is not None
    assert agent.process.poll() is None
    assert not (world.data / "epoch").exists()


async def test_silent_scheduler_is_left_after_the_lease_and_called_again(world: AgentWorld) -> None:
    world.scheduler.answers_echo = False
    world.scheduler.lease_ms = 600
    world.enrolled().start()
    first = await world.scheduler.until_sessions(1)
    await world.scheduler.until_sessions(2)
    assert any(one.sent_at for one in first.reports)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, "wire version 1 is not spoken here; install agent 2.0"),
        (grpc.StatusCode.FAILED_PRECONDITION, "the server host1 was decommissioned"),
        (grpc.StatusCode.PERMISSION_DENIED, "this certificate is of no server"),
    ],
)
async def test_refused_agent_ends_with_the_schedulers_words(
    world: AgentWorld, code: grpc.StatusCode, words: str
) -> None:
    world.scheduler.refusal = (code, words)
    agent = world.enrolled()
    agent.start()
    ended, said = await agent.ended(None)
    assert (ended, said.splitlines()[-1]) == (
        1,
        f"error: the scheduler at {world.scheduler.address} refuses this agent: {words}",
    )


async def test_certificate_of_another_ca_opens_nothing(world: AgentWorld, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    FakeScheduler(tmp_path / "other").identity(world.data / "identity", "host1")
    agent = world.agent()
    agent.start()
    await agent.until_said("detached link=1 ")
    await agent.until_said("detached link=2 ")  # it goes on trying
    assert world.scheduler.sessions == []
    assert (await agent.ended())[0] == 0


async def test_certificate_is_replaced_in_time_and_the_next_session_opens_before_the_old_one_ends(
    world: AgentWorld,
) -> None:
    world.enrolled(ttl_seconds=1_000.0, age_seconds=3_000.0).start()
    report = await world.running()
    first = world.scheduler.session
    second = await world.scheduler.until_sessions(2)
    assert second.certificate != first.certificate
    await until(lambda: first.is_over, "the old session to end")
    assert second.opened_at < first.over_at
    os.kill(pid_of(report), signal.SIGKILL)
    await second.until_state(CELL, cell_pb2.CELL_STATE_EXITED)


async def test_reports_are_numbered_and_beats_come_when_nothing_changes(world: AgentWorld) -> None:
    world.enrolled().start()
    await world.running()
    session = world.scheduler.session
    count = len(session.reports)
    await until(lambda: len(session.reports) >= count + 5, "five beats")
    assert [one.sequence for one in session.reports] == list(range(1, len(session.reports) + 1))
    assert {one.session for one in session.reports} == {session.id}
    assert all(not one.cells for one in session.reports[count + 1 :])


async def test_resync_is_answered_with_everything(world: AgentWorld) -> None:
    world.enrolled().start()
    await world.running()
    session = world.scheduler.session
    session.instruct(link_pb2.Instruction(resync=link_pb2.Resync()))
    complete = await until(lambda: [one for one in session.reports if one.complete], "a complete report")
    assert [one.cell_id for one in complete[0].cells] == [CELL]


async def test_logs_come_in_chunks_with_an_end_and_do_not_hold_reports_back(world: AgentWorld) -> None:
    world.enrolled().start()
    await world.running(CELL, "sh", "-c", "seq 1 20000; exec sleep 600")
    session = world.scheduler.session

    def read(stream: int) -> bytes:
        return b"".join(one.data for one in session.logs if one.stream == stream)

    followed = link_pb2.FetchLogs(stream=6, cell_id=CELL, tail=100_000, follow=True)
    session.instruct(link_pb2.Instruction(fetch_logs=followed))
    await until(lambda: read(6).endswith(b"19999\n20000\n"), "all that was written")
    once = link_pb2.FetchLogs(stream=7, cell_id=CELL, tail=100)
    session.instruct(link_pb2.Instruction(fetch_logs=once))
    await until(lambda: any(one.end for one in session.logs if one.stream == 7), "the end of the logs")
    assert read(7) == "".join(f"{n}\n" for n in range(19_901, 20_001)).encode()
    assert all(len(one.data) <= 32 * 1024 for one in session.logs)
    count = len(session.reports)
    await until(lambda: len(session.reports) >= count + 3, "reports while the logs are still followed")
    assert not any(one.end for one in session.logs if one.stream == 6)


async def test_logs_are_followed_until_nobody_wants_them(world: AgentWorld) -> None:
    world.enrolled().start()
    await world.running(CELL, "sh", "-c", "while sleep 0.05; do echo tick; done")
    session = world.scheduler.session
    ask = link_pb2.FetchLogs(stream=8, cell_id=CELL, tail=1, follow=True)
    session.instruct(link_pb2.Instruction(fetch_logs=ask))
    await until(lambda: sum(one.data.count(b"tick") for one in session.logs) >= 5, "five ticks")
    session.instruct(link_pb2.Instruction(stop_logs=link_pb2.StopLogs(stream=8)))
    sequence = len(session.reports)
    await until(lambda: len(session.reports) >= sequence + 3, "some beats")
    count = len(session.logs)
    await until(lambda: len(session.reports) >= sequence + 8, "more beats")
    assert len(session.logs) == count


async def test_logs_of_an_unknown_cell_end_with_the_reason(world: AgentWorld) -> None:
    world.enrolled().start()
    session = await world.scheduler.until_sessions(1)
    ask = link_pb2.FetchLogs(stream=9, cell_id="db/1.1")
    session.instruct(link_pb2.Instruction(fetch_logs=ask))
    await until(lambda: session.logs, "an answer")
    assert list(session.logs) == [
        link_pb2.LogChunk(stream=9, end=True, error="no cell db/1.1 on this server")
    ]


async def test_probed_cell_is_told_passing_then_failing_then_passing(
    world: AgentWorld, tmp_path: Path
) -> None:
    world.enrolled().start()
    session = await world.scheduler.until_sessions(1)
    health = cell_pb2.Health(
        http=cell_pb2.HttpProbe(port="http", path="/"), every_ms=200, timeout_ms=200, sick_after=2
    )
    session.instruct(order(CELL, *http_server(), ports={"http": 0}, health=health))
    await until(lambda: session.cells[CELL].probe.has_passed if CELL in session.cells else False, "a pass")
    pid = pid_of(session.cells[CELL])
    world.pids.add(pid)
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: session.cells[CELL].probe.consecutive_failures == 2, "two failures")
    assert session.cells[CELL].probe.last_error == "no answer within 200 ms"
    os.kill(pid, signal.SIGCONT)
    await until(lambda: session.cells[CELL].probe.consecutive_failures == 0, "recovery")
    assert session.cells[CELL].state == RUNNING
