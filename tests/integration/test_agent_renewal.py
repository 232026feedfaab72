"""An agent whose certificate ended while no scheduler could be reached: the real process, back without a person."""

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from galactica.agent.link.identity import Identity, store
from tests.support.agent_world import AgentWorld, agent_world, pid_of, until
from tests.support.orders import CELL
from tests.support.processes import is_alive


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[AgentWorld]:
    async with agent_world(tmp_path) as world:
        yield world


def stored(world: AgentWorld) -> Identity:
    identity = Identity.load(world.data / "identity")
    assert identity is not None
    return identity


async def until_ended(identity: Identity) -> None:
    await until(lambda: identity.has_expired(time.time()), "the certificate's end")


async def test_outage_longer_than_the_certificate_costs_no_cell_and_needs_no_token(world: AgentWorld) -> None:
    agent = world.enrolled(ttl_seconds=3.0).start()
    cell = await world.running()
    before = stored(world)
    await world.scheduler.stop()
    await until_ended(before)
    await world.scheduler.start()
    second = await world.scheduler.until_sessions(2)
    after = stored(world)
    assert [(one.cell_id, one.runtime_id) for one in second.hello.inventory] == [(CELL, cell.runtime_id)]
    assert (agent.poll(), is_alive(pid_of(cell))) == (None, True)
    assert world.scheduler.renewed_expired == ["host1"]
    assert second.certificate == after.certificate_pem != before.certificate_pem
    assert (
        replace(
            after,
            certificate_pem=before.certificate_pem,
            issued_at=before.issued_at,
            expires_at=before.expires_at,
        )
        == before
    )


async def test_agent_that_starts_in_the_outage_waits_and_comes_back_with_its_cells(world: AgentWorld) -> None:
    agent = world.enrolled(ttl_seconds=3.0)
    agent.start()
    cell = await world.running()
    await agent.ended()
    await world.scheduler.stop()
    await until_ended(stored(world))
    again = world.agent()
    again.start()
    await again.until_said("event=certificate not renewed")
    await world.scheduler.start()
    session = await world.scheduler.until_sessions(2)
    assert [one.runtime_id for one in session.hello.inventory] == [cell.runtime_id]
    assert is_alive(pid_of(cell))


async def test_agent_outlasts_a_scheduler_whose_clock_is_weeks_ahead(world: AgentWorld) -> None:
    world.scheduler.off_seconds = 40 * 86_400.0
    agent = world.enrolled(ttl_seconds=-1.0)
    agent.start()
    await agent.until_said("so one of the clocks is wrong")
    world.scheduler.off_seconds = 0.0
    await world.scheduler.until_sessions(1)
    assert world.scheduler.renewed_expired == ["host1"]


async def test_agent_whose_certificate_is_too_old_by_its_own_clock_too_ends(world: AgentWorld) -> None:
    agent = world.enrolled(ttl_seconds=-40 * 86_400.0)
    agent.start()
    code, said = await agent.ended(None)
    assert (code, "more than 30 days ago" in said.splitlines()[-1]) == (1, True)


async def test_refused_agent_ends_with_what_to_do_and_leaves_its_cells_alone(world: AgentWorld) -> None:
    agent = world.enrolled(ttl_seconds=3.0)
    agent.start()
    cell = await world.running()
    await agent.ended()
    await until_ended(stored(world))
    world.scheduler.members.clear()
    again = world.agent()
    again.start()
    code, said = await again.ended(None)
    words = (
        f"error: the scheduler at 127.0.0.1:{world.scheduler.enrol_port} refuses to renew this server's "
        "certificate: server host1 is not in this fleet; make a token with 'galactica token create' at the "
        "scheduler and start the agent with it (--token-file FILE)"
    )
    assert (code, said.splitlines()[-1]) == (1, words)
    assert is_alive(pid_of(cell))
    assert len(world.scheduler.sessions) == 1


async def test_refused_agent_that_was_given_a_token_enrols_anew(world: AgentWorld) -> None:
    world.enrolled(ttl_seconds=-1.0)
    before = stored(world)
    world.scheduler.members.clear()
    world.agent(GALACTICA_TOKEN=world.scheduler.token).start()
    session = await world.scheduler.until_sessions(1)
    assert session.server == "host1"
    assert stored(world).key_pem != before.key_pem


async def test_token_is_not_spent_while_renewing_does(world: AgentWorld) -> None:
    world.enrolled(ttl_seconds=-1.0)
    before = stored(world)
    world.agent(GALACTICA_TOKEN=world.scheduler.token).start()
    await world.scheduler.until_sessions(1)
    assert stored(world).key_pem == before.key_pem
    assert world.scheduler.renewed_expired == ["host1"]


async def test_agent_whose_clock_is_behind_renews_a_certificate_that_ended_for_the_scheduler_alone(
    world: AgentWorld,
) -> None:
    agent = world.enrolled(ttl_seconds=-60.0)
    store(world.data / "identity", replace(stored(world), expires_at=time.time() + 3_000.0))
    agent.start()
    await world.scheduler.until_sessions(1)
    assert world.scheduler.renewed_expired == ["host1"]


async def test_agent_whose_clock_is_ahead_is_let_in_with_a_certificate_that_seems_to_have_ended(
    world: AgentWorld,
) -> None:
    agent = world.enrolled()
    store(world.data / "identity", replace(stored(world), expires_at=time.time() - 3_000.0))
    agent.start()
    await world.scheduler.until_sessions(1)
    assert world.scheduler.renewed_expired == ["host1"]


async def test_agent_remembers_the_port_where_it_enrolled(world: AgentWorld) -> None:
    world.enrolled(ttl_seconds=-1.0)
    world.agent("--enrol", "").start()
    await world.scheduler.until_sessions(1)
