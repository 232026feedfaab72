"""Parts of the agent's daemon that fail, and begin anew."""

import asyncio
import errno
import logging

import pytest

from galactica.agent import steady
from galactica.agent.starved import Lacks, lack_of
from galactica.agent.steady import steadily


class Part:
    """Fails with these errors, one at each run, then works until it may end."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.runs = 0
        self.works = asyncio.Event()
        self.may_end = asyncio.Event()

    async def run(self) -> None:
        self.runs += 1
        if self.errors:
            raise self.errors.pop(0)
        self.works.set()
        await self.may_end.wait()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steady, "PAUSE_FIRST_SECONDS", 0.001)


async def test_part_that_fails_begins_anew_until_it_ends_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    part = Part(ValueError("a mistake"), KeyError("another"))
    running = asyncio.create_task(steadily("drift", part.run, Lacks()))
    async with asyncio.timeout(10):
        await part.works.wait()
        part.may_end.set()
        await running
    assert part.runs == 3
    assert [record.getMessage() for record in caplog.records] == ["part failed, begins anew part=drift"] * 2


async def test_what_the_agent_lacked_for_a_part_is_told_as_its_lack(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    lacks = Lacks()
    part = Part(ExceptionGroup("of tasks", [OSError(errno.EMFILE, "no file")]))
    running = asyncio.create_task(steadily("probes", part.run, lacks))
    async with asyncio.timeout(10):
        await part.works.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (lacks.take(), lacks.take()) == ("EMFILE", "")
    assert caplog.records == []


@pytest.mark.parametrize(
    ("error", "lack"),
    [
        (OSError(errno.ENFILE, "no file"), "ENFILE"),
        (MemoryError(), "ENOMEM"),
        (RuntimeError("can't start new thread"), "EAGAIN"),
        (ExceptionGroup("outer", [ExceptionGroup("inner", [OSError(errno.ENOSPC, "full")])]), "ENOSPC"),
        (ConnectionError("aborted", OSError(errno.EMFILE, "no file")), "EMFILE"),
        (OSError(errno.ECONNREFUSED, "refused"), ""),
        (RuntimeError("another"), ""),
    ],
    ids=repr,
)
def test_lack_is_found_behind_an_error(error: Exception, lack: str) -> None:
    assert lack_of(error) == lack
