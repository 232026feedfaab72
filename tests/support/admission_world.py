"""What tests of admission ask for again and again."""

from rpds import HashTrieMap

from galactica.scheduler.core.admission import MAX_TOKENS
from galactica.scheduler.core.model.fleet import Fleet, Token
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.reconcile.draft import Draft
from galactica.scheduler.core.sight.state import Sight
from tests.support.world import SECRET, START, World, service

WRONG = "6" * 64


def draft_of(fleet: Fleet, now: float = START) -> Draft:
    return Draft(fleet, Sight(), now, Policy())


def two_ready() -> World:
    world = World()
    world.join("a", "b")
    world.apply(service("web", 2))
    return world


def full_of_tokens() -> World:
    """As after that many requests, which would take minutes."""
    tokens = (Token(f"t{number}", SECRET, 1, START + 10) for number in range(MAX_TOKENS))
    return World(fleet=Fleet(tokens=HashTrieMap((token.id, token) for token in tokens)))
