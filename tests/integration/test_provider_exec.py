"""The exec provider with real programs, the worked example among them."""

import asyncio
import json
import os
import signal
import sys
import textwrap
from pathlib import Path

import pytest

from galactica.scheduler.core.sight.observations import ProviderServer, ProviderState
from galactica.scheduler.providers.exec import provider as program_module
from galactica.scheduler.providers.port import ProviderRefused, ProviderUnavailable, Setting
from tests.support.agent_world import ROOT, fake_scheduler, until
from tests.support.processes import is_alive
from tests.support.provider_world import CELL, FLEET, body, user_data

EXAMPLE = ROOT / "deploy/providers/processes.py"
PATHS = str(ROOT)
FLEET_ID = "0123456789abcdef"


def provider_of(tmp_path, *program, **options):
    return program_module.make(
        Setting("it", FLEET, tmp_path / "data", {"program": program, **options}, FLEET_ID)
    )


def shell(tmp_path, script, **options):
    """A provider whose program is this script."""
    return provider_of(tmp_path, "/bin/sh", "-c", textwrap.dedent(script), **options)


async def test_program_gets_the_whole_order_on_standard_input_and_the_token_nowhere_else(tmp_path):
    script = f'cat > {tmp_path}/said; env > {tmp_path}/env; echo \'{{"ref": "rack 7"}}\''
    provider = shell(tmp_path, script, environment={"ROOM": "12"})
    assert await provider.order(CELL, body('{"size": "xl"}'), user_data()) == "rack 7"
    assert json.loads((tmp_path / "said").read_text()) == {
        "version": 1,
        "action": "create",
        "fleet": FLEET,
        "fleet_id": FLEET_ID,
        "cell": CELL,
        "body": {"size": "xl"},
        "user_data": {
            "scheduler": "127.0.0.1:7400",
            "enrolment": "127.0.0.1:7401",
            "token": "gal1.secret",
            "labels": {"zone": "a"},
            "runtimes": [],
            "arguments": [
                "--scheduler",
                "127.0.0.1:7400",
                "--enrol",
                "127.0.0.1:7401",
                "--id",
                "pool/0.1",
                "--label",
                "zone=a",
            ],
        },
    }
    environment = (tmp_path / "env").read_text()
    assert "ROOM=12" in environment
    assert "secret" not in environment


async def test_large_question_and_large_answer_come_through_whole(tmp_path):
    servers = [{"cell": f"pool/{slot}.1", "ref": f"r{slot}", "state": "running"} for slot in range(20_000)]
    (tmp_path / "answer").write_text(json.dumps({"servers": servers}))
    provider = shell(tmp_path, f"cat {tmp_path}/answer")
    assert len(await provider.list()) == 20_000
    provider = shell(tmp_path, 'printf \'{"ref": "%s"}\' $(wc -c)')
    assert int(await provider.order(CELL, body(json.dumps({"text": "x" * 500_000})), user_data())) > 500_000


@pytest.mark.parametrize(
    ("script", "error", "says"),
    [
        ("echo no such rack >&2; exit 65", ProviderRefused, r"\(list\) refused: no such rack"),
        ("echo busy >&2; exit 3", ProviderUnavailable, r"\(list\) failed with exit code 3: busy"),
        ("exit 1", ProviderUnavailable, "exit code 1; nothing on standard error"),
        ("kill -9 $$", ProviderUnavailable, "was killed by SIGKILL"),
        ("exit 0", ProviderUnavailable, r"gave an invalid answer, not JSON: b''"),
        ("echo it went well", ProviderUnavailable, r"gave an invalid answer, not JSON: b'it went well"),
        ("echo '[]'", ProviderUnavailable, "gave an invalid answer"),
        ("echo '{}'", ProviderUnavailable, "gave an invalid answer: servers: Field required"),
        ("echo '{\"servers\": null}'", ProviderUnavailable, "gave an invalid answer"),
        ("yes | head -c 20000000", ProviderUnavailable, "wrote more than 16777216 bytes and was killed"),
    ],
)
async def test_whatever_is_no_good_answer_is_told_for_what_it_is(tmp_path, script, error, says):
    with pytest.raises(error, match=says):
        await shell(tmp_path, script).list()


@pytest.mark.parametrize(
    ("entry", "cell", "reason"),
    [
        ({"cell": "pool/1.1", "ref": "r", "state": "well"}, "pool/1.1", "pool/1.1: state: Input should be"),
        ({"cell": "pool/1.1", "ref": "r", "state": "unreadable"}, "pool/1.1", "pool/1.1: state: Input"),
        ({"cell": "pool/1.1"}, "pool/1.1", "pool/1.1: ref: Field required; state: Field required"),
        ({"cell": 7, "ref": "r", "state": "gone"}, "", "no cell: cell: Input should be a valid string"),
        (None, "", "no cell: it: Input should be"),
    ],
)
async def test_a_wrong_entry_of_a_list_does_not_spoil_the_others(tmp_path, entry, cell, reason):
    good = {"cell": "pool/0.1", "ref": "r0", "state": "running"}
    (tmp_path / "answer").write_text(json.dumps({"servers": [entry, good]}))
    wrong, right = await shell(tmp_path, f"cat {tmp_path}/answer").list()
    assert (wrong.cell, wrong.ref, wrong.state) == (cell, "", ProviderState.UNREADABLE)
    assert wrong.reason.startswith(reason)
    assert right == ProviderServer("pool/0.1", "r0", ProviderState.RUNNING)


async def test_program_that_is_not_there_is_told(tmp_path):
    with pytest.raises(
        ProviderUnavailable, match=r"the program /no/where \(list\) cannot be run: No such file"
    ):
        await provider_of(tmp_path, "/no/where").list()


async def test_program_that_takes_too_long_is_killed_with_its_children(tmp_path):
    provider = shell(
        tmp_path, f"sleep 600 & echo $! > {tmp_path}/child; echo thinking >&2; wait", timeout=0.5
    )
    with pytest.raises(ProviderUnavailable, match=r"took longer than 0.5 s and was killed: thinking"):
        await provider.list()
    child = int((tmp_path / "child").read_text())
    await until(lambda: not is_alive(child), "the child has ended")


async def test_program_that_nobody_waits_for_any_more_is_killed(tmp_path):
    provider = shell(
        tmp_path, f"echo $$ > {tmp_path}/self.new; mv {tmp_path}/self.new {tmp_path}/self; exec sleep 600"
    )
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await provider.list()
    assert not is_alive(int((tmp_path / "self").read_text()))


async def test_child_that_lives_on_does_not_hold_the_answer_up(tmp_path):
    provider = shell(tmp_path, f'sleep 600 & echo $! > {tmp_path}/child; echo \'{{"ref": "r"}}\'', timeout=10)
    try:
        assert await provider.order(CELL, body(), user_data()) == "r"
    finally:
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def test_which_program_runs_is_said_by_the_configuration(tmp_path):
    with pytest.raises(ProviderRefused, match="options: program: Field required"):
        program_module.make(Setting("it", FLEET, tmp_path, {}))


# --- the worked example -----------------------------------------------------------------------------------------------


def example(tmp_path):
    agent = ["--agent", sys.executable, "--agent-argument=-m", "--agent-argument=agent"]
    program = [sys.executable, str(EXAMPLE), "--directory", str(tmp_path / "servers"), *agent]
    return provider_of(tmp_path, *program, environment={"PYTHONPATH": PATHS})


async def test_example_makes_lists_and_deletes_real_servers(tmp_path):
    provider = example(tmp_path)
    assert await provider.list() == ()
    async with fake_scheduler(tmp_path / "ca") as scheduler:
        enrolment = f"127.0.0.1:{scheduler.enrol_port}"
        given = user_data(scheduler=scheduler.address, enrolment=enrolment, token=scheduler.token)
        try:
            ref = await provider.order(CELL, body('{"nice": 1}'), given)
            assert (await scheduler.until_sessions(1)).server == CELL
            assert await provider.order(CELL, body('{"nice": 1}'), given) == ref
            assert await provider.list() == (ProviderServer(CELL, ref, ProviderState.RUNNING),)
            os.kill(int(ref.removeprefix("pid-")), signal.SIGKILL)
            await until(lambda: not is_alive(int(ref.removeprefix("pid-"))), "the server has ended")
            assert await provider.list() == (ProviderServer(CELL, ref, ProviderState.GONE),)
            other = await provider.order("pool/0.2", body(), given)
            await scheduler.until_sessions(2)
        finally:
            for cell in (CELL, "pool/0.2"):
                await provider.decommission("", cell)
        assert not is_alive(int(other.removeprefix("pid-")))
        assert await provider.list() == ()


async def test_example_refuses_a_body_that_it_does_not_understand(tmp_path):
    with pytest.raises(ProviderRefused, match="unknown fields in the pool's server: colour; known: nice"):
        await example(tmp_path).order(CELL, body('{"colour": "red"}'), user_data())


def test_example_needs_nothing_but_the_standard_library():
    imported = {
        line.split()[1] for line in EXAMPLE.read_text().splitlines() if line.startswith(("import ", "from "))
    }
    assert {name.split(".")[0] for name in imported} <= sys.stdlib_module_names
    assert Path(EXAMPLE).stat().st_mode & 0o111
