"""What the agent makes of addresses before it starts."""

import pytest

from galactica.agent.settings import StartError, host_and_port, parser, settings_of
from galactica.agent.start import enrolment_address, until_resolved, watch_place


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1:7443", ("10.0.0.1", 7443)),
        ("scheduler.example:7443", ("scheduler.example", 7443)),
        ("[::1]:7443", ("::1", 7443)),
        ("[fe80::1%eth0]:7443", ("fe80::1%eth0", 7443)),
    ],
)
def test_an_address_is_a_host_and_a_port_and_an_ipv6_literal_has_brackets(text, expected):
    assert host_and_port(text) == expected


@pytest.mark.parametrize("text", ["::1:7443", "fe80::1", "[::1]", "[::1:7443", "[]:7443", ":7443", "host:0"])
def test_what_is_no_address_is_refused_with_an_example(text):
    with pytest.raises(StartError, match=r"use HOST:PORT, or \[ADDRESS\]:PORT for IPv6"):
        host_and_port(text)


def settings(*words):
    return settings_of(parser().parse_args([*words]))


def test_enrolment_is_at_the_next_port_of_an_ipv6_literal_too():
    assert enrolment_address(settings("--scheduler", "[::1]:7443"), None) == "[::1]:7444"


def test_neighbours_reach_the_agent_at_its_address_on_the_way_to_an_ipv6_scheduler():
    assert watch_place(settings("--scheduler", "[::1]:7443")) == ("::1", 0)


def test_an_address_for_cells_that_this_machine_lacks_is_not_where_neighbours_reach_it():
    assert watch_place(settings("--scheduler", "127.0.0.1:7443", "--host", "192.0.2.1")) == ("127.0.0.1", 0)
    assert watch_place(settings("--scheduler", "127.0.0.1:7443", "--host", "127.0.0.2")) == ("127.0.0.1", 0)


def test_a_name_that_cannot_be_resolved_is_asked_for_again_with_growing_pauses():
    """No pause is longer than the link's: DNS may be there at any moment."""

    class Enough(Exception):
        pass

    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 12:
            raise Enough

    with pytest.raises(Enough):
        until_resolved("no-such-host.invalid:7443", pause)
    assert pauses[0] <= 0.1
    assert 2.5 <= pauses[-1] <= 5.0
    until_resolved("127.0.0.1:7443", pause)
    assert len(pauses) == 12
