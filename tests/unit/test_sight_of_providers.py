"""What is seen of a provider's servers: its lists and its words, and what each of them proves."""

import pytest
from msgspec.structs import replace
from rpds import HashTrieMap

from galactica.scheduler.core.model.commands import Verb
from galactica.scheduler.core.sight.observations import (
    Answer,
    Observation,
    ProviderListed,
    ProviderServer,
    ProviderSilent,
    ProviderState,
    ServerMade,
    ServerNotMade,
    ServerUnmade,
)
from galactica.scheduler.core.sight.observations import (
    Testimony as Saying,  # a name that pytest does not take for a test
)
from galactica.scheduler.core.sight.observe import Observed, observe
from galactica.scheduler.core.sight.state import (
    Going,
    ProviderSight,
    Sight,
    Told,
    forget_server,
    tell_provider,
)

SILENT = Saying("b", Answer.SILENT, 100.5)
MADE = ProviderServer("rack/0.1", "ref-1", ProviderState.RUNNING)
OTHER = ProviderServer("rack/1.1", "ref-2", ProviderState.RUNNING)
KNOWN = ProviderSight(HashTrieMap({"rack/0.1": MADE}), listed_at=50.0)


def provided(known: ProviderSight) -> Sight:
    return Sight(providers=HashTrieMap({"p": known}))


TROUBLE = "an entry of its list cannot be read: no state"


def unreadable(cell: str) -> ProviderServer:
    return ProviderServer(cell, "", ProviderState.UNREADABLE, "no state")


@pytest.mark.parametrize(
    ("said", "after", "made"),
    [
        pytest.param(
            ServerMade("p", "rack/1.1", "ref-2", 60.0),
            {"servers": KNOWN.servers.insert("rack/1.1", OTHER)},
            ("rack/1.1",),
            id="took an order",
        ),
        pytest.param(
            ServerNotMade("p", "rack/1.1", "no quota", 60.0),
            {"refused": HashTrieMap({"rack/1.1": "no quota"})},
            ("rack/1.1",),
            id="refused an order",
        ),
        pytest.param(
            ServerUnmade("p", "rack/0.1", 60.0),
            {"going": HashTrieMap({"rack/0.1": Going(60.0)})},
            ("rack/0.1",),
            id="took a delete, which proves nothing",
        ),
        pytest.param(
            ServerUnmade("p", "rack/0.1", 60.0, is_gone=True),
            {
                "servers": HashTrieMap(
                    {"rack/0.1": ProviderServer("rack/0.1", "", ProviderState.GONE, "deleted")}
                )
            },
            ("rack/0.1",),
            id="deleted one",
        ),
        pytest.param(ProviderSilent("p", "no route", 60.0), {"trouble": "no route"}, (), id="is silent"),
        pytest.param(
            ProviderListed("p", (MADE, OTHER), 60.0, 61.0),
            {"servers": HashTrieMap({"rack/0.1": MADE, "rack/1.1": OTHER}), "listed_at": 60.0},
            ("rack/1.1",),
            id="lists one more",
        ),
        pytest.param(
            ProviderListed("p", (OTHER,), 60.0, 61.0),
            {"servers": HashTrieMap({"rack/1.1": OTHER}), "listed_at": 60.0},
            ("rack/1.1", "rack/0.1"),
            id="lists another",
        ),
        pytest.param(
            ProviderListed("p", (unreadable("rack/0.1"), OTHER), 60.0, 61.0),
            {
                "servers": HashTrieMap({"rack/0.1": MADE, "rack/1.1": OTHER}),
                "listed_at": 60.0,
                "trouble": TROUBLE,
            },
            ("rack/1.1",),
            id="an entry that cannot be read leaves its server as it is known",
        ),
        pytest.param(
            ProviderListed("p", (unreadable("rack/1.1"),), 60.0, 61.0),
            {
                "servers": HashTrieMap(
                    {"rack/1.1": ProviderServer("rack/1.1", "", ProviderState.PENDING, "no state")}
                ),
                "listed_at": 60.0,
                "trouble": TROUBLE,
            },
            ("rack/1.1", "rack/0.1"),
            id="an entry that cannot be read shows that there is a server, and others are missing",
        ),
        pytest.param(
            ProviderListed("p", (unreadable(""), OTHER), 60.0, 61.0),
            {"servers": HashTrieMap({"rack/0.1": MADE, "rack/1.1": OTHER}), "trouble": TROUBLE},
            ("rack/1.1",),
            id="an entry that names no server may be about any: no absence counts",
        ),
        pytest.param(
            ProviderListed("p", (), 60.0, 61.0),
            {"listed_at": 60.0, "was_empty": True},
            (),
            id="an empty list proves no death",
        ),
    ],
)
def test_a_provider_says_what_it_has(said: Observation, after: dict, made: tuple[str, ...]) -> None:
    expected = Observed(provided(replace(KNOWN, **after)), provider="p", made=made)
    assert observe(provided(KNOWN), said) == expected


def test_a_provider_that_answers_again_is_in_trouble_no_more() -> None:
    sight = provided(replace(KNOWN, trouble="no route"))
    assert observe(sight, ProviderListed("p", (MADE,), 60.0, 61.0)).sight == provided(
        replace(KNOWN, listed_at=60.0)
    )


def test_a_server_cell_that_is_forgotten_leaves_nothing_behind() -> None:
    told = tell_provider(provided(KNOWN), "p", "rack/0.1", Verb.ORDER, 60.0)
    assert told == provided(replace(KNOWN, told=HashTrieMap({"rack/0.1": Told(Verb.ORDER, 60.0)})))
    told = replace(told, about=HashTrieMap({"rack/0.1": HashTrieMap({"a": SILENT})}))
    assert forget_server(told, "p", "rack/0.1") == provided(ProviderSight(listed_at=50.0))
    assert forget_server(told, "q", "rack/0.1") is told


GONE = ProviderServer("rack/0.1", "", ProviderState.GONE, "deleted")
DOUBTFUL = replace(GONE, is_doubtful=True)


@pytest.mark.parametrize(
    ("lists", "word"),
    [
        pytest.param([((OTHER,), 60.0)], GONE, id="another is listed, and it is not"),
        pytest.param([((OTHER,), 59.0)], None, id="a list that was asked for before the delete was taken"),
        pytest.param([((MADE, OTHER), 60.0)], MADE, id="it is listed"),
        pytest.param([((MADE,), 60.0), ((OTHER,), 70.0)], GONE, id="it is listed, and later it is not"),
        pytest.param([((unreadable("rack/0.1"), OTHER), 60.0)], MADE, id="its entry cannot be read"),
        pytest.param([((unreadable(""), OTHER), 60.0)], MADE, id="an entry names no server"),
        pytest.param([((unreadable("rack/1.1"),), 60.0)], GONE, id="another's entry cannot be read"),
        pytest.param([((), 60.0)], MADE, id="one empty list"),
        pytest.param([((), 60.0), ((), 70.0)], DOUBTFUL, id="two empty lists"),
        pytest.param(
            [((), 59.0), ((), 70.0)], MADE, id="two empty lists, one from before the delete was taken"
        ),
        pytest.param([((), 40.0), ((), 60.0), ((), 70.0)], DOUBTFUL, id="two more after many empty lists"),
        pytest.param([((), 60.0), ((OTHER,), 65.0), ((), 70.0)], GONE, id="two empty lists, not in a row"),
    ],
)
def test_a_delete_that_was_taken_is_proven_by_a_later_list_alone(
    lists: list[tuple[tuple[ProviderServer, ...], float]], word: ProviderServer | None
) -> None:
    sight = provided(replace(KNOWN, servers=HashTrieMap({"rack/0.1": MADE})))
    sight = observe(sight, ServerUnmade("p", "rack/0.1", 60.0)).sight
    for servers, asked_at in lists:
        sight = observe(sight, ProviderListed("p", servers, asked_at, asked_at)).sight
    assert sight.providers["p"].servers.get("rack/0.1") == word


def test_what_was_taken_first_counts_when_a_delete_is_taken_again() -> None:
    sight = provided(KNOWN)
    for at in (60.0, 90.0):
        sight = observe(sight, ServerUnmade("p", "rack/0.1", at)).sight
    assert sight.providers["p"].going["rack/0.1"] == Going(60.0, times=2)


ATTEMPT = replace(GONE, ref="old-attempt", reason="terminated")
ANOTHER = replace(MADE, ref="ref-9")


def twice(says: str) -> str:
    return f"an entry of its list cannot be read: rack/0.1 is in the list 2 times: {says}"


@pytest.mark.parametrize(
    ("entries", "word", "trouble"),
    [
        pytest.param(
            (MADE, ATTEMPT), MADE, twice("gone (old-attempt), running (ref-1)"), id="running, then gone"
        ),
        pytest.param(
            (ATTEMPT, MADE), MADE, twice("gone (old-attempt), running (ref-1)"), id="gone, then running"
        ),
        pytest.param((MADE, ANOTHER), MADE, twice("running (ref-1), running (ref-9)"), id="two servers"),
        pytest.param(
            (ATTEMPT, unreadable("rack/0.1")),
            MADE,
            twice("gone (old-attempt), unreadable (no state)"),
            id="gone, and one that cannot be read",
        ),
        pytest.param((MADE, MADE), MADE, "", id="the same twice"),
        pytest.param((GONE, ATTEMPT), GONE, "", id="gone, whatever it was called"),
    ],
)
def test_a_list_that_contradicts_itself_about_a_server_proves_nothing_of_it(
    entries: tuple[ProviderServer, ...], word: ProviderServer, trouble: str
) -> None:
    said = ProviderListed("p", (*entries, OTHER), 60.0, 61.0)
    servers = HashTrieMap({"rack/0.1": word, "rack/1.1": OTHER})
    expected = replace(KNOWN, servers=servers, listed_at=60.0, trouble=trouble)
    assert observe(provided(KNOWN), said).sight == provided(expected)


def test_a_delete_that_was_taken_is_not_proven_by_a_list_that_contradicts_itself() -> None:
    sight = observe(provided(KNOWN), ServerUnmade("p", "rack/0.1", 55.0)).sight
    sight = observe(sight, ProviderListed("p", (MADE, ATTEMPT), 60.0, 61.0)).sight
    assert sight.providers["p"].servers["rack/0.1"] == MADE
