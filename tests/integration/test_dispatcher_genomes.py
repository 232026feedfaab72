"""Genomes over the agents' link, with mTLS: given to agents, and gathered again where everything else is lost."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from galactica.scheduler.core.model.genome import Genome, GenomeMark
from galactica.scheduler.link.genomes import KEPT_WITHIN_SECONDS
from galactica.scheduler.security.ca import new_key_and_csr
from galactica.scheduler.security.renewal import server_to_renew
from galactica.scheduler.security.sealing import seal, unseal
from galactica.v1 import link_pb2, link_pb2_grpc, operator_pb2
from tests.support.dispatcher_world import Code
from tests.support.link_world import PlayedAgent, link_world
from tests.support.memory_mind import MemoryMind

NONE = link_pb2.GenomeMark()


@pytest.fixture
async def world(tmp_path):
    async with link_world(tmp_path) as world:
        yield world


@pytest.fixture
async def regrown(tmp_path):
    async with link_world(tmp_path, MemoryMind(regrows=True)) as world:
        yield world


async def test_an_agent_gets_the_genome_and_its_word_that_it_keeps_it_is_in_status(world):
    operator = await world.operator()
    agent = await world.agent("a", genome=NONE)
    await world.dispatcher.genomes.look()

    given = await heard(agent, "genome")
    mark, genome = unseal(world.ca, given.sealed)
    world.mind.off_seconds += KEPT_WITHIN_SECONDS
    before = await operator.GetStatus(operator_pb2.GetStatusRequest())
    await agent.say(genome_kept=link_pb2.GenomeKept(mark=given.mark))
    await agent.report(sent_at=1.0)
    await heard(agent, "echo")
    after = await operator.GetStatus(operator_pb2.GetStatusRequest())

    assert (given.mark.epoch, given.mark.position) == (mark.epoch, mark.position)
    assert [one.id for one in genome.servers] == ["a"]
    assert (before.genome.kept, before.genome.wanted, unkept(before)) == (0, 1, 1)
    assert (after.genome.kept, after.genome.wanted, unkept(after)) == (1, 1, 0)
    assert after.healthy


def unkept(status):
    return sum("no agent keeps the newest genome" in note for note in status.notes)


async def heard(agent, kind):
    """The next message of that kind."""
    while (answer := await agent.hear()).WhichOneof("message") != kind:
        pass
    return getattr(answer, kind)


async def test_an_agent_of_an_earlier_version_is_served_as_ever(world):
    agent = await world.agent("a")
    await world.dispatcher.genomes.look()
    await agent.report(sent_at=1.0)
    assert (await agent.hear()).HasField("echo")


async def test_a_scheduler_that_is_grown_anew_lets_servers_in_by_their_certificate_and_asks_for_the_genome(
    regrown,
):
    operator = await regrown.operator()
    sealed = seal(regrown.ca, Genome(), GenomeMark(5, 70))
    mark = link_pb2.GenomeMark(epoch=5, position=70)
    agent = await regrown.agent("a", genome=mark, epoch=5)
    assert agent.welcome.epoch > 5

    asked = asyncio.ensure_future(_regrow(operator, operator_pb2.REGROW_STEP_TAKE))
    await heard(agent, "genome_wanted")
    await agent.say(genome=link_pb2.Genome(mark=mark, fleet_id=regrown.ca.fleet_id, sealed=sealed))
    assert (await asked).done == "the genome of epoch 5, position 70 is planted"

    assert (await _regrow(operator, operator_pb2.REGROW_STEP_SETTLE)).done.startswith(
        "cells and servers are judged"
    )
    assert regrown.mind.fleet().regrowth is None


async def _regrow(operator, step):
    return await operator.Regrow(operator_pb2.RegrowRequest(step=step))


async def test_steps_that_do_not_fit_are_refused(world, regrown):
    for one, step, code in (
        (world, operator_pb2.REGROW_STEP_TAKE, Code.FAILED_PRECONDITION),
        (world, operator_pb2.REGROW_STEP_SETTLE, Code.FAILED_PRECONDITION),
        (regrown, operator_pb2.REGROW_STEP_TAKE, Code.FAILED_PRECONDITION),
        (regrown, operator_pb2.REGROW_STEP_UNSPECIFIED, Code.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await _regrow(await one.operator(), step)
        assert refusal.value.code() is code


async def test_an_agent_attaches_also_when_the_genome_was_planted_without_its_server(regrown):
    operator = await regrown.operator()
    await regrown.agent("a", genome=NONE)
    await _regrow(operator, operator_pb2.REGROW_STEP_WITHOUT_GENOME)
    await regrown.agent("b", genome=NONE)
    assert set(regrown.mind.fleet().servers) == {"a", "b"}
    await _regrow(operator, operator_pb2.REGROW_STEP_SETTLE)
    late = PlayedAgent("c", link_pb2_grpc.AgentLinkServiceStub(await regrown.server_channel("c")))
    refused = "server c is not in this fleet: enrol it again with a new token"
    assert await late.ending() == (Code.FAILED_PRECONDITION, refused)


async def test_an_expired_certificate_is_renewed_while_the_scheduler_does_not_know_its_servers(
    world, regrown
):
    """Else an outage longer than the life of a certificate would be the end of the fleet."""
    _, csr = new_key_and_csr()
    for one in (world, regrown):
        issued = one.ca.issue_server(csr, "a", 1.0)
        later = issued.expires_at + 3_600.0
        if one is regrown:
            assert server_to_renew(one.ca, one.mind.fleet(), issued.certificate_pem, csr, later) == "a"
        else:
            with pytest.raises(Exception, match="server a is not in this fleet"):
                server_to_renew(one.ca, one.mind.fleet(), issued.certificate_pem, csr, later)
