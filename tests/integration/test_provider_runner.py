"""What the runner makes of commands and of a provider's answers, with a provider in memory."""

import asyncio
from collections import deque

import pytest
from msgspec.structs import replace

from galactica.scheduler.core.model.commands import DecommissionServer, OrderServer
from galactica.scheduler.core.model.spec import RuntimeKind, ServerBody, Spec
from galactica.scheduler.core.sight.observations import (
    ProviderListed,
    ProviderServer,
    ProviderSilent,
    ProviderState,
    ServerMade,
    ServerNotMade,
    ServerUnmade,
)
from galactica.scheduler.providers.lane import RunnerLimits
from galactica.scheduler.providers.port import ProviderRefused, ProviderUnavailable
from tests.support.provider_world import CELL, FLEET, ListeningMind, runner_with

QUICK = RunnerLimits(pause_first_seconds=0.01, sweep_seconds=0.05, sweep_after_change_seconds=0.01)
RARELY = replace(QUICK, sweep_seconds=60, sweep_after_change_seconds=60)
SPEC = Spec(RuntimeKind.SERVER, server=ServerBody("it", "{}", {"zone": "a"}))
RUNNING = ProviderServer(CELL, "ref-1", ProviderState.RUNNING)


class Warehouse:
    """A provider whose failures come from a list, and which can be made to wait."""

    name = "it"

    def __init__(self, *failures: Exception) -> None:
        self.failures = deque(failures)
        self.calls: list[str] = []
        self.data = []
        self.servers: object = (RUNNING,)
        self.open = asyncio.Event()
        self.open.set()
        self.busy = self.busiest = 0
        self.is_closed = False

    async def order(self, cell_id, spec, user_data):
        self.data.append(user_data)
        await self._take(f"order {cell_id}")
        return f"ref of {cell_id}"

    async def decommission(self, ref, cell_id):
        await self._take(f"decommission {cell_id}")

    async def list(self):
        if isinstance(self.servers, Exception):
            raise self.servers
        return self.servers

    async def close(self):
        self.is_closed = True

    async def _take(self, call):
        self.calls.append(call)
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        try:
            await self.open.wait()
            if self.failures:
                raise self.failures.popleft()
        finally:
            self.busy -= 1


class Bell(Warehouse):
    """One that notices changes by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.rung = asyncio.Event()

    async def watch(self):
        while True:
            await self.rung.wait()
            self.rung.clear()
            yield RUNNING


def order(cell=CELL, token="gal1.secret", provider="it"):
    return OrderServer(provider, cell, SPEC, token)


def decommission(cell=CELL, provider="it"):
    return DecommissionServer(provider, cell, "ref-1", "it is old")


def timeless(observations):
    return [replace(one, at=0.0) for one in observations]


def what_became_of_commands(mind):
    return timeless(
        one for one in mind.observed if isinstance(one, ServerMade | ServerNotMade | ServerUnmade)
    )


async def test_order_is_made_with_everything_that_the_agent_needs():
    mind, provider = ListeningMind(), Warehouse()
    async with runner_with(provider, mind, [order()], QUICK):
        await mind.until(lambda: mind.of(ServerMade))
    assert timeless(mind.of(ServerMade)) == [ServerMade("it", CELL, f"ref of {CELL}", 0.0)]
    (data,) = provider.data
    assert (data.cell_id, data.fleet, data.token, data.labels) == (CELL, FLEET, "gal1.secret", {"zone": "a"})
    assert (data.scheduler, data.enrolment) == ("127.0.0.1:7400", "127.0.0.1:7401")
    assert "gal1.secret" not in repr(data)
    assert provider.is_closed


async def test_words_of_the_configuration_are_on_the_agents_command_line():
    mind, provider = ListeningMind(), Warehouse()
    more = ("--bus", "mqtt://10.77.0.1")
    async with runner_with(provider, mind, [order()], QUICK, more=more):
        await mind.until(lambda: mind.of(ServerMade))
    (data,) = provider.data
    assert data.agent_arguments()[-4:] == ["--label", "zone=a", *more]


async def test_what_fails_for_now_is_tried_again_until_it_works():
    mind, provider = (
        ListeningMind(),
        Warehouse(ProviderUnavailable("busy"), ValueError("a mistake of its own")),
    )
    async with runner_with(provider, mind, [order()], QUICK):
        await mind.until(lambda: mind.of(ServerMade))
    assert provider.calls == [f"order {CELL}"] * 3


async def test_refused_order_is_not_tried_again():
    mind, provider = ListeningMind(), Warehouse(ProviderRefused("no such size"))
    async with runner_with(provider, mind, [order()], QUICK):
        await mind.until(lambda: mind.of(ServerNotMade))
    assert what_became_of_commands(mind) == [ServerNotMade("it", CELL, "no such size", 0.0)]
    assert provider.calls == [f"order {CELL}"]


async def test_order_that_never_works_is_given_up_after_six_tries():
    mind, provider = ListeningMind(), Warehouse(*[ProviderUnavailable("busy")] * 20)
    async with runner_with(provider, mind, [order()], QUICK):
        await mind.until(lambda: mind.of(ServerNotMade))
    assert what_became_of_commands(mind) == [ServerNotMade("it", CELL, "gave up after 6 tries: busy", 0.0)]
    assert len(provider.calls) == 6


async def test_decommission_that_never_works_is_told_and_no_server_is_called_gone():
    mind, provider = ListeningMind(), Warehouse(*[ProviderUnavailable("busy")] * 20)
    async with runner_with(provider, mind, [decommission()], QUICK):
        await mind.until(lambda: mind.of(ProviderSilent))
    reason = f"{CELL} was not deleted: gave up after 6 tries: busy"
    assert timeless(mind.of(ProviderSilent)) == [ProviderSilent("it", reason, 0.0)]
    assert mind.of(ServerUnmade) == []


async def test_call_that_hangs_is_ended_and_counts_as_a_failure():
    mind, provider = ListeningMind(), Warehouse()
    provider.open.clear()
    limits = replace(QUICK, call_seconds=0.05, tries=2)
    async with runner_with(provider, mind, [order()], limits):
        await mind.until(lambda: mind.of(ServerNotMade))
    reason = "gave up after 2 tries: the order took longer than 0.05 s"
    assert what_became_of_commands(mind) == [ServerNotMade("it", CELL, reason, 0.0)]
    assert provider.busy == 0


async def test_decommission_waits_for_the_order_before_it():
    mind, provider = ListeningMind(), Warehouse()
    provider.open.clear()
    async with runner_with(provider, mind, [order(), decommission()], QUICK) as runner:
        await mind.until(lambda: provider.calls and mind.listed)
        runner.send([order(), decommission()])
        assert provider.calls == [f"order {CELL}"]
        provider.open.set()
        await mind.until(lambda: mind.of(ServerUnmade))
    made, unmade = ServerMade("it", CELL, f"ref of {CELL}", 0.0), ServerUnmade("it", CELL, 0.0)
    assert what_became_of_commands(mind) == [made, unmade]


async def test_failing_order_is_given_up_when_its_server_is_not_wanted_any_more():
    mind, provider = ListeningMind(), Warehouse(ProviderUnavailable("busy"))
    async with runner_with(provider, mind, [order(), decommission()], QUICK):
        await mind.until(lambda: mind.of(ServerUnmade))
    assert provider.calls == [f"order {CELL}", f"decommission {CELL}"]
    assert [type(one) for one in what_became_of_commands(mind)] == [ServerNotMade, ServerUnmade]


async def test_repeated_order_changes_nothing_but_brings_the_newest_token():
    mind, provider = ListeningMind(), Warehouse(ProviderUnavailable("busy"))
    provider.open.clear()
    async with runner_with(provider, mind, [order(token="old")], QUICK) as runner:
        await mind.until(lambda: provider.calls and mind.listed)
        runner.send([order(token="new")])
        provider.open.set()
        await mind.until(lambda: mind.of(ServerMade))
    assert [data.token for data in provider.data] == ["old", "new"]
    assert len(mind.of(ServerMade)) == 1


async def test_at_most_so_many_calls_run_at_once_and_all_are_made():
    mind, provider = ListeningMind(), Warehouse()
    cells = [f"pool/{slot}.1" for slot in range(30)]
    provider.open.clear()
    limits = replace(QUICK, concurrency=3)
    async with runner_with(provider, mind, [order(cell) for cell in cells], limits):
        await mind.until(lambda: provider.busy == 3 and mind.listed)
        provider.open.set()
        await mind.until(lambda: len(mind.of(ServerMade)) == 30)
    assert provider.busiest == 3
    assert {one.server for one in mind.of(ServerMade)} == set(cells)


async def test_more_commands_than_the_queue_takes_are_dropped_and_the_others_carried_out():
    mind, provider = ListeningMind(), Warehouse()
    provider.open.clear()
    cells = [f"pool/{slot}.1" for slot in range(5)]
    async with runner_with(provider, mind, [order(cell) for cell in cells], replace(QUICK, waiting=3)):
        provider.open.set()
        await mind.until(lambda: len(mind.of(ServerMade)) == 3)
    assert [one.server for one in mind.of(ServerMade)] == cells[:3]


async def test_a_token_is_in_no_reason_that_is_reported():
    mind, provider = ListeningMind(), Warehouse(ProviderRefused("I do not like gal1.secret at all"))
    async with runner_with(provider, mind, [order()], QUICK):
        await mind.until(lambda: mind.of(ServerNotMade))
    assert mind.of(ServerNotMade)[0].reason == "I do not like (the token) at all"


async def test_provider_that_nobody_configured_makes_nothing_and_says_which_there_are():
    mind = ListeningMind()
    async with runner_with(Warehouse(), mind, [order(provider="moon"), decommission(provider="moon")], QUICK):
        await mind.until(lambda: mind.of(ProviderSilent))
    reason = "the provider 'moon' is not configured (configured: it)"
    assert what_became_of_commands(mind) == [ServerNotMade("moon", CELL, reason, 0.0)]
    assert timeless(mind.of(ProviderSilent)) == [ProviderSilent("moon", reason, 0.0)]


async def test_list_is_told_with_the_time_at_which_it_was_asked_for():
    mind = ListeningMind()
    began_at = mind.now()
    async with runner_with(Warehouse(), mind, limits=QUICK):
        await mind.until(lambda: len(mind.of(ProviderListed)) == 3)
    for one in mind.of(ProviderListed):
        assert (one.provider, one.servers) == ("it", (RUNNING,))
        assert began_at <= one.asked_at <= one.at


async def test_empty_list_is_passed_on_as_it_is():
    mind, provider = ListeningMind(), Warehouse()
    provider.servers = ()
    async with runner_with(provider, mind, limits=QUICK):
        assert await mind.until(lambda: mind.listed == ())


@pytest.mark.parametrize(
    "garbage",
    [
        None,
        "pool/0.1",
        {"cell": CELL},
        (RUNNING,) * 4,
        ProviderUnavailable("out of order"),
        KeyError("a mistake of its own"),
    ],
    ids=str,
)
async def test_garbage_is_silence_and_never_a_list(garbage):
    mind, provider = ListeningMind(), Warehouse()
    provider.servers = garbage
    async with runner_with(provider, mind, limits=replace(QUICK, servers=3)):
        await mind.until(lambda: mind.of(ProviderSilent))
    assert mind.of(ProviderListed) == []


OTHER = ProviderServer("pool/1.1", "ref-2", ProviderState.RUNNING)


@pytest.mark.parametrize(
    ("entry", "cell", "reason"),
    [
        ({"cell": CELL}, "", "an entry is not a server"),
        (ProviderServer("no id", "ref-1", ProviderState.RUNNING), "", "'no id' is not a cell id"),
        (ProviderServer(CELL, "", ProviderState.RUNNING), CELL, f"{CELL}: "),
        (ProviderServer(CELL, "ref-1", "fine"), CELL, f"state or reason of {CELL} is invalid: 'fine'"),
        (ProviderServer(CELL, "", ProviderState.UNREADABLE, "no record"), CELL, "no record"),
    ],
    ids=str,
)
async def test_entry_that_cannot_be_read_is_told_and_hides_no_other(entry, cell, reason):
    mind, provider = ListeningMind(), Warehouse()
    provider.servers = (entry, OTHER)
    async with runner_with(provider, mind, limits=QUICK):
        await mind.until(lambda: mind.listed)
    unreadable, other = mind.listed
    assert (unreadable.cell, unreadable.state, other) == (cell, ProviderState.UNREADABLE, OTHER)
    assert unreadable.reason.startswith(reason)


async def test_server_that_is_listed_twice_counts_once_and_is_in_doubt_if_the_two_differ():
    mind, provider = ListeningMind(), Warehouse()
    provider.servers = (RUNNING, RUNNING, OTHER, replace(OTHER, state=ProviderState.GONE))
    async with runner_with(provider, mind, limits=QUICK):
        await mind.until(lambda: mind.listed)
    one, doubtful = mind.listed
    assert one == RUNNING
    assert (doubtful.cell, doubtful.state) == (OTHER.cell, ProviderState.UNREADABLE)


async def test_a_change_is_followed_by_a_list_soon():
    mind, provider = ListeningMind(), Warehouse()
    async with runner_with(provider, mind, limits=replace(RARELY, sweep_after_change_seconds=0.01)) as runner:
        await mind.until(lambda: mind.listed)
        runner.send([order()])
        await mind.until(lambda: len(mind.of(ProviderListed)) == 2)


async def test_what_a_provider_notices_by_itself_is_listed_at_once():
    mind, provider = ListeningMind(), Bell()
    async with runner_with(provider, mind, limits=RARELY):
        await mind.until(lambda: mind.listed)
        provider.servers = ()
        provider.rung.set()
        await mind.until(lambda: mind.listed == ())
