"""Looking into cells on a real engine: what they write, and commands inside them."""

import asyncio
from typing import Any

import pytest

from galactica.agent.runtimes.port import RuntimeFailure
from tests.support.docker_cells import a_runtime, ignore_progress, order, web

pytestmark = pytest.mark.docker

SLEEPER = ("sleep", "1000")


async def _text(chunks: Any) -> str:
    return b"".join([chunk async for chunk in chunks]).decode()


async def test_logs_give_the_tail_and_then_what_comes(engine, busybox_image):
    async with a_runtime(engine) as runtime:
        read = "read line < /tmp/pipe"
        script = f'for i in 1 2 3 4; do echo old $i; done; {read}; echo "new $line" >&2; {read}'
        cell = order("web/0.1", busybox_image, "sh", "-c", f"mkfifo /tmp/pipe; {script}")
        await runtime.start(cell, ignore_progress)
        following = runtime.logs("web/0.1", 100, follow=True)
        seen = ""
        while "old 4" not in seen:
            seen += (await anext(following)).decode()
        assert await _text(runtime.logs("web/0.1", 2, follow=False)) == "old 3\nold 4\n"
        assert await runtime.execute("web/0.1", ["sh", "-c", "echo word > /tmp/pipe"], 10) == (0, "")
        # What this one answers is nobody's to say: it may be killed by the end of the cell that it asks to end.
        await runtime.execute("web/0.1", ["sh", "-c", "echo end > /tmp/pipe"], 10)
        async with asyncio.timeout(20):
            assert await _text(following) == "new word\n"


async def test_a_reader_that_leaves_makes_room_for_others(engine, busybox_image):
    async with a_runtime(engine) as runtime:
        chatty = order("web/0.1", busybox_image, "sh", "-c", "while :; do echo chatter; done")
        await runtime.start(chatty, ignore_progress)
        for _ in range(20):  # more than may read at once
            following = runtime.logs("web/0.1", 1, follow=True)
            assert b"chatter\n" in await anext(following)
            await following.aclose()


async def test_commands_and_logs_of_a_cell_that_is_not_here_are_refused_by_name(engine):
    async with a_runtime(engine) as runtime:
        with pytest.raises(RuntimeFailure, match=r"no cell web/9\.9 on this server"):
            await runtime.execute("web/9.9", ["true"], 5)
        with pytest.raises(RuntimeFailure, match=r"no cell web/9\.9 on this server"):
            await anext(runtime.logs("web/9.9", 10, follow=False))


async def test_a_command_tells_its_code_and_last_line(engine, busybox_image):
    async with a_runtime(engine) as runtime:
        await runtime.start(order("web/0.1", busybox_image, *SLEEPER), ignore_progress)
        assert await runtime.execute("web/0.1", ["sh", "-c", "echo one; echo two"], 10) == (0, "two")
        assert await runtime.execute("web/0.1", ["sh", "-c", "echo bad >&2; exit 5"], 10) == (5, "bad")
        code, why = await runtime.execute("web/0.1", ["frobnicate"], 10)
        assert code == 127
        assert "frobnicate" in why


async def test_a_command_that_takes_too_long_is_ended_with_all_that_it_began(engine, busybox_image):
    async with a_runtime(engine) as runtime:
        await runtime.start(web("web/0.1", busybox_image), ignore_progress)
        with pytest.raises(TimeoutError, match=r"sh took longer than 0\.5 s in web/0\.1"):
            await runtime.execute("web/0.1", ["sh", "-c", "sleep 777; echo never"], 0.5)
        count = "cat /proc/[0-9]*/comm | grep -c sleep"
        assert await runtime.execute("web/0.1", ["sh", "-c", count], 10) == (1, "0")


@pytest.mark.parametrize("output", ["", "< /dev/null > /dev/null 2>&1"], ids=["held", "closed"])
async def test_a_command_ends_with_its_first_process_and_so_does_what_it_leaves(
    engine, busybox_image, output
):
    async with a_runtime(engine) as runtime:
        await runtime.start(web("web/0.1", busybox_image), ignore_progress)
        leave = f"setsid sh -c 'sleep 777; sleep 777' {output} & echo begun; sleep 0.3; echo done"
        assert await runtime.execute("web/0.1", ["sh", "-c", leave], 1.8) == (0, "done")
        count = "cat /proc/[0-9]*/comm | grep -c sleep"
        assert await runtime.execute("web/0.1", ["sh", "-c", count], 10) == (1, "0")


async def test_a_service_with_slow_commands_leaves_room_for_those_of_others(engine, busybox_image):
    async with a_runtime(engine) as runtime:
        for cell_id in ("slow/0.1", "good/0.1"):
            await runtime.start(order(cell_id, busybox_image, *SLEEPER), ignore_progress)
        async with asyncio.TaskGroup() as tasks:
            begun = asyncio.Event()
            slow = [
                tasks.create_task(runtime.execute("slow/0.1", ["sleep", "1000"], 1_000, begun.set))
                for _ in range(40)
            ]
            await asyncio.wait_for(begun.wait(), 20)
            for _ in range(3):
                assert await runtime.execute("good/0.1", ["true"], 20) == (0, "")
            for one in slow:
                one.cancel()
            await runtime.stop("slow/0.1", "SIGKILL", 0)
