"""The neighbours' watch in whole agents: they see each other, and say why they cannot be watched."""

import signal

import pytest

from galactica.v1 import link_pb2
from tests.support.agent_world import AgentProcess, fake_scheduler, until

KEY = b"k" * 16

OTHER_KEY = b"o" * 16


# The whole agent.


async def test_agents_watch_each_other_and_say_what_they_see(tmp_path):
    (tmp_path / "ca").mkdir()
    async with fake_scheduler(tmp_path / "ca") as scheduler:
        agents: dict[str, AgentProcess] = {}
        try:
            for name in ("one", "two"):
                scheduler.identity(tmp_path / name / "identity", name)
                agents[name] = AgentProcess(scheduler, tmp_path / name)
                agents[name].start()
            await scheduler.until_sessions(2)
            sessions = {session.server: session for session in scheduler.sessions}
            for name, other, key, accepted in (
                ("one", "two", KEY, OTHER_KEY),
                ("two", "one", OTHER_KEY, KEY),
            ):
                address = sessions[other].hello.watch_address
                assert address.startswith("127.0.0.1:")
                given = link_pb2.Neighbours(
                    neighbours=[link_pb2.Neighbour(server_id=other, address=address, key=key)],
                    accepted_keys=[accepted],
                )
                sessions[name].outgoing.put_nowait(link_pb2.AttachResponse(neighbours=given))

            def said(name: str) -> list[tuple[str, int]]:
                reports = sessions[name].reports
                return [(one.server_id, one.answer) for report in reports for one in report.testimonies]

            await until(lambda: said("one") and said("two"), "both answer")
            agents["two"].process.send_signal(signal.SIGSTOP)
            await until(lambda: len(said("one")) == 2, "silence is told")
            agents["two"].process.kill()
            await until(lambda: len(said("one")) == 3, "the closed port is told")
            assert not any(
                one.after_refusal for report in sessions["one"].reports for one in report.testimonies
            )
            answers = [link_pb2.ANSWER_ANSWERS, link_pb2.ANSWER_SILENT, link_pb2.ANSWER_REFUSED]
            assert said("one") == [("two", answer) for answer in answers]

            # What it saw while nobody listened is the first that it says when somebody does again.
            await scheduler.stop()
            await scheduler.start()
            again = await scheduler.until_sessions(3)
            await until(lambda: again.reports, "a report")
            (told,) = again.reports[0].testimonies
            assert (told.server_id, told.answer) == ("two", link_pb2.ANSWER_REFUSED)
            assert told.for_ms > 0
        finally:
            for agent in agents.values():
                agent.dispose()


@pytest.mark.parametrize(
    ("watch", "code", "message"),
    [
        ("nowhere", 2, "invalid --watch 'nowhere': use off, or ADDRESS:PORT with a numeric address"),
        ("0.0.0.0:0", 2, "invalid --watch '0.0.0.0:0': use off, or ADDRESS:PORT with a numeric address"),
        (
            "192.0.2.1:0",
            1,
            "cannot listen for neighbours at 192.0.2.1:0: Cannot assign requested address",
        ),
    ],
)
async def test_agent_says_why_it_cannot_be_watched_there(tmp_path, watch, code, message):
    (tmp_path / "ca").mkdir()
    async with fake_scheduler(tmp_path / "ca") as scheduler:
        scheduler.identity(tmp_path / "one" / "identity", "one")
        agent = AgentProcess(scheduler, tmp_path / "one", "--watch", watch)
        agent.start()
        ended, said = await agent.ended(None)
        assert (ended, said.splitlines()[-1][: len("error: ") + len(message)]) == (code, f"error: {message}")


async def test_agent_whose_watch_is_off_tells_no_address(tmp_path):
    (tmp_path / "ca").mkdir()
    async with fake_scheduler(tmp_path / "ca") as scheduler:
        scheduler.identity(tmp_path / "one" / "identity", "one")
        agent = AgentProcess(scheduler, tmp_path / "one", "--watch", "off")
        try:
            agent.start()
            assert (await scheduler.until_sessions(1)).hello.watch_address == ""
        finally:
            agent.dispose()
