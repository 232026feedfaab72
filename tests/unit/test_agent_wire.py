"""The agent's side of the contract: what it says survives the wire, and never grows beyond what the wire takes."""

import pytest

from galactica.agent.core.events import (
    Decommissioned,
    Echoed,
    Instructed,
    LogsAsked,
    LogsDeclined,
    Ordered,
    ResyncAsked,
    Retuned,
    Welcomed,
)
from galactica.agent.core.instructions import SendHello, SendReport
from galactica.agent.core.model import CellReport, CellState, Death, ProbeStatus
from galactica.agent.link import wire
from galactica.v1 import cell_pb2, link_pb2

FACTS = wire.ServerFacts({"zone": "a"}, cell_pb2.Capacity(cpu_millis=2_000), (1, 2), "0.1.0")


def test_report_says_a_cell_whole() -> None:
    cell = CellReport(
        "web/1.1",
        "d1",
        CellState.EXITED,
        "pid 7",
        {"http": "127.0.0.1:8080"},
        ProbeStatus(has_passed=True, consecutive_failures=2, last_error="refused"),
        Death("it vanished", 3.5),
        "pulling",
    )
    sent = wire.report(SendReport(1, "s1", 4, (cell,), complete=True, wants_echo=True), wall_seconds=7.0)
    assert sent == link_pb2.AttachRequest(
        report=link_pb2.Report(
            session="s1",
            sequence=4,
            complete=True,
            sent_at=7.0,
            cells=[
                cell_pb2.CellReport(
                    cell_id="web/1.1",
                    digest="d1",
                    state=cell_pb2.CELL_STATE_EXITED,
                    runtime_id="pid 7",
                    endpoints={"http": "127.0.0.1:8080"},
                    probe=cell_pb2.ProbeStatus(has_passed=True, consecutive_failures=2, last_error="refused"),
                    autopsy=cell_pb2.Autopsy(reason="it vanished", lived_seconds=3.5),
                    progress="pulling",
                )
            ],
        )
    )


def test_report_that_wants_no_echo_carries_no_time() -> None:
    assert wire.report(SendReport(1, "s1", 1), wall_seconds=7.0).report.sent_at == 0.0


@pytest.mark.parametrize("deaths", [2, 200, 1_000])
def test_mass_death_fits_into_one_message_and_each_keeps_its_reason_and_its_newest_words(deaths: int) -> None:
    lines = [f"{n} ".ljust(1_000, "x") for n in range(50)]
    cells = tuple(
        CellReport(
            f"web/{n}.1",
            "d" * 64,
            CellState.EXITED,
            autopsy=cell_pb2.Autopsy(reason="died", last_lines=lines),
        )
        for n in range(deaths)
    )
    sent = wire.hello(SendHello(1, cells, 3), FACTS)
    assert sent.ByteSize() < 4 * 1024 * 1024
    inventory = sent.hello.inventory
    assert [one.autopsy.reason for one in inventory] == ["died"] * deaths
    assert all(list(one.autopsy.last_lines) == lines[50 - len(one.autopsy.last_lines) :] for one in inventory)
    assert len(inventory[0].autopsy.last_lines) == {2: 50, 200: 7, 1_000: 1}[deaths]


def test_responses_become_events() -> None:
    order = link_pb2.Order(cell_id="web/1.1")
    tempo = link_pb2.Tempo(beat_ms=1_000, lease_ms=5_000)
    batch = link_pb2.Instructions(
        session="s1",
        sequence=3,
        epoch=2,
        instructions=[
            link_pb2.Instruction(order=order, beat_at=7.5),
            link_pb2.Instruction(decommission=link_pb2.Decommission(cell_id="web/2.1", reason="sick")),
            link_pb2.Instruction(resync=link_pb2.Resync()),
            link_pb2.Instruction(
                fetch_logs=link_pb2.FetchLogs(stream=7, cell_id="web/1.1", tail=5, follow=True)
            ),
            link_pb2.Instruction(stop_logs=link_pb2.StopLogs(stream=7)),
            link_pb2.Instruction(),
        ],
    )
    verbs = (
        Ordered(order, 7.5),
        Decommissioned("web/2.1", "sick"),
        ResyncAsked(),
        LogsAsked(7, "web/1.1", 5, follow=True),
        LogsDeclined(7),
    )
    welcome = link_pb2.Welcome(session="s1", epoch=2, tempo=tempo, fleet="f", beat_at=8.5)
    for response, event in (
        (link_pb2.AttachResponse(welcome=welcome), Welcomed(1, "s1", 2, 1.0, 5.0, 9.0, 8.5)),
        (link_pb2.AttachResponse(tempo=tempo), Retuned(1, 1.0, 5.0, 9.0)),
        (link_pb2.AttachResponse(echo=link_pb2.Echo(beat_at=8.0)), Echoed(1, 9.0, 8.0)),
        (link_pb2.AttachResponse(instructions=batch), Instructed(1, "s1", 3, verbs, 9.0, 2)),
        (link_pb2.AttachResponse(), None),
    ):
        assert wire.event(response, link=1, now=9.0) == event


def test_tempo_of_nothing_does_not_make_the_agent_spin() -> None:
    event = wire.event(link_pb2.AttachResponse(tempo=link_pb2.Tempo()), link=1, now=9.0)
    assert event == Retuned(1, 0.05, 0.1, 9.0)
