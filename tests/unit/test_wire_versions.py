"""Which wire version a scheduler speaks with an agent, and with whom it speaks none."""

import pytest

from galactica.agent.link import wire as agent_wire
from galactica.scheduler.core.model.requests import Refused
from galactica.scheduler.wire.versions import OLDEST_WIRE_VERSION, WIRE_VERSION, is_behind, spoken_with
from galactica.v1 import link_pb2


def hello(oldest, newest=0):
    return link_pb2.Hello(wire_version=oldest, newest_wire_version=newest)


def test_scheduler_and_agent_of_one_tree_have_the_same_versions():
    ours = (OLDEST_WIRE_VERSION, WIRE_VERSION)
    assert (agent_wire.OLDEST_WIRE_VERSION, agent_wire.WIRE_VERSION) == ours == (1, 2)
    assert spoken_with(hello(*ours)) == WIRE_VERSION


@pytest.mark.parametrize(
    ("oldest", "newest", "spoken", "behind"),
    [
        (1, 0, 1, True),  # release 0.1
        (1, 1, 1, True),
        (2, 0, 2, False),
        (1, 2, 2, False),
        (2, 3, 2, False),  # the next release's agent
        (0, 9, 2, False),
    ],
)
def test_they_speak_the_newest_version_that_both_know(oldest, newest, spoken, behind):
    assert spoken_with(hello(oldest, newest)) == spoken
    assert is_behind(spoken) is behind


@pytest.mark.parametrize(
    ("oldest", "newest", "words"),
    [
        (0, 0, "version 0, but this scheduler uses 2 and serves 1: install a newer agent"),
        (3, 0, "version 3, but this scheduler uses 2 and serves 1: install a newer scheduler"),
        (3, 4, "versions 3 to 4, but this scheduler uses 2 and serves 1: install a newer scheduler"),
    ],
)
def test_without_a_common_version_the_older_side_is_named(oldest, newest, words):
    with pytest.raises(Refused) as refused:
        spoken_with(hello(oldest, newest))
    assert str(refused.value) == f"the agent uses wire {words}"
    assert refused.value.rule == "wire_version"


@pytest.mark.parametrize(("told", "spoken"), [(0, 1), (1, 1), (2, 2)])
def test_a_scheduler_that_does_not_tell_the_version_speaks_the_first(told, spoken):
    assert agent_wire.spoken(link_pb2.Welcome(wire_version=told)) == spoken
