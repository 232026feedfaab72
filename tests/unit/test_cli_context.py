"""The context file: private, whole, and told about plainly where it is not."""

from __future__ import annotations

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from galactica.scheduler.security.ca import CertificateAuthority
from galactica.scheduler.settings.context import (
    Context,
    Contexts,
    Kept,
    context_path,
    create_context,
    forget_context,
    keep_context,
    kept_before,
    read_context,
    read_contexts,
    use_context,
)
from galactica.scheduler.settings.errors import CommandFailed, ExitCode

CONTEXT = Context("127.0.0.1:7400", "ca", "cert", "secret-key", "demo", "ada", "admin")


def fleet(name: str, fleet_id: str, key: str = "key", ca: str = "") -> Context:
    return Context("127.0.0.1:7400", ca or f"ca of {fleet_id}", "cert", key, name, "admin", "admin", fleet_id)


DEMO, PROD, OTHER_DEMO = fleet("demo", "a" * 16), fleet("prod", "b" * 16), fleet("demo", "c" * 16)


def test_what_is_written_is_read_and_only_its_owner_can(tmp_path: Path):
    path = tmp_path / "new" / "context.json"
    keep_context(path, CONTEXT)
    assert read_context(path) == CONTEXT
    assert {file.name for file in path.parent.iterdir()} == {"context.json", ".context.json.lock"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


def test_a_newer_context_takes_the_place_of_the_same_fleets_and_leaves_the_choice(tmp_path: Path):
    path = tmp_path / "context.json"
    keep_context(path, DEMO)
    keep_context(path, PROD)
    newer = replace(DEMO, key_pem="newer")
    kept = keep_context(path, newer)
    assert (kept.name, kept.is_current) == ("demo", False)
    assert read_contexts(path) == Contexts("prod", {"demo": newer, "prod": PROD})


def test_another_fleets_start_adds_its_context_and_loses_no_key(tmp_path: Path):
    path = tmp_path / "context.json"
    kept = [keep_context(path, one) for one in (DEMO, PROD, OTHER_DEMO)]
    assert [(one.name, one.is_current) for one in kept] == [
        ("demo", True),
        ("prod", True),
        ("demo-cccccccc", True),
    ]
    assert read_context(path) == OTHER_DEMO
    assert [read_context(path, name) for name in ("demo", "prod", "c" * 16)] == [DEMO, PROD, OTHER_DEMO]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_context_of_a_fleet_that_is_there_already_is_found_by_the_fleets_id(tmp_path: Path):
    path = tmp_path / "context.json"
    assert kept_before(path, DEMO.fleet_id) is None
    keep_context(path, DEMO)
    keep_context(path, PROD)
    assert kept_before(path, DEMO.fleet_id) == Kept("demo", read_contexts(path))
    assert kept_before(path, "e" * 16) is None


def test_starts_at_the_same_moment_lose_no_context(tmp_path: Path):
    path = tmp_path / "context.json"
    fleets = [fleet(f"fleet-{number}", f"{number:016x}") for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda one: keep_context(path, one), fleets))
    assert dict(read_contexts(path).by_name) == {one.fleet: one for one in fleets}


def test_a_file_with_one_context_alone_is_read_and_its_fleets_id_is_found_in_its_ca(tmp_path: Path):
    ca = CertificateAuthority.open_or_create(tmp_path / "ca", "demo")
    path = tmp_path / "context.json"
    old = asdict(fleet("demo", ca.fleet_id, ca=ca.certificate_pem.decode()))
    del old["fleet_id"]
    path.touch(mode=0o600)
    path.write_text(json.dumps(old))
    assert read_context(path).fleet_id == ca.fleet_id
    keep_context(path, PROD)
    newer = replace(read_context(path, "demo"), key_pem="newer")
    assert keep_context(path, newer).name == "demo"
    assert dict(read_contexts(path).by_name) == {"demo": newer, "prod": PROD}


def test_a_program_that_knows_one_context_finds_the_current_one_at_the_top_of_the_file(tmp_path: Path):
    path = tmp_path / "context.json"
    keep_context(path, DEMO)
    keep_context(path, PROD)
    assert asdict(PROD).items() <= json.loads(path.read_text()).items()


def test_another_context_is_chosen_by_its_name_or_its_fleets_id(tmp_path: Path):
    path = tmp_path / "context.json"
    for one in (DEMO, PROD, OTHER_DEMO):
        keep_context(path, one)
    assert use_context(path, "demo") == "demo"
    assert read_context(path) == DEMO
    assert use_context(path, PROD.fleet_id) == "prod"
    assert read_context(path) == PROD
    for wrong in (lambda: use_context(path, "tset"), lambda: read_context(path, "tset")):
        with pytest.raises(CommandFailed, match="no context 'tset'; it has demo, demo-cccccccc, prod"):
            wrong()


def test_a_context_is_forgotten_only_if_it_is_not_in_use(tmp_path: Path):
    path = tmp_path / "context.json"
    keep_context(path, DEMO)
    keep_context(path, PROD)
    with pytest.raises(CommandFailed, match="'prod' is the current context"):
        forget_context(path, "prod")
    assert forget_context(path, "demo") == "demo"
    assert read_contexts(path) == Contexts("prod", {"prod": PROD})


def test_a_damaged_file_in_the_way_is_moved_aside_because_it_may_hold_keys(tmp_path: Path):
    path = tmp_path / "context.json"
    path.write_text('{"key_pem": "precious')
    kept = keep_context(path, DEMO)
    assert kept.aside is not None
    assert kept.aside.read_text() == '{"key_pem": "precious'
    assert read_contexts(path) == Contexts("demo", {"demo": DEMO})


def test_creating_a_context_never_takes_the_place_of_a_file(tmp_path: Path):
    path = tmp_path / "bob.json"
    path.write_text("precious")
    with pytest.raises(FileExistsError):
        create_context(path, CONTEXT)
    assert path.read_text() == "precious"
    assert [file.name for file in tmp_path.iterdir()] == ["bob.json"]


def test_the_private_key_is_not_shown_with_the_context():
    assert "secret-key" not in repr(CONTEXT)


def test_a_context_that_others_can_read_is_refused(tmp_path: Path):
    path = tmp_path / "context.json"
    keep_context(path, CONTEXT)
    path.chmod(0o640)
    with pytest.raises(CommandFailed) as caught:
        read_context(path)
    assert caught.value.code is ExitCode.UNAUTHORISED
    assert f"chmod 600 {path}" in caught.value.hint


def test_without_a_context_the_next_step_is_told(tmp_path: Path):
    with pytest.raises(CommandFailed) as caught:
        read_context(tmp_path / "none.json")
    assert caught.value.code is ExitCode.UNREACHABLE
    assert "galactica up" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "{", '{"scheduler": 1}', "\xff", "[" * 100_000, '{"others": []}']
)
def test_a_damaged_context_is_named(tmp_path: Path, text: str):
    path = tmp_path / "context.json"
    path.touch(mode=0o600)
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CommandFailed) as caught:
        read_context(path)
    assert str(caught.value).startswith(f"invalid context file {path}")
    assert caught.value.code is ExitCode.USAGE


def test_the_environment_says_where_the_context_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GALACTICA_CONTEXT", "/somewhere/else.json")
    assert context_path() == Path("/somewhere/else.json")
    monkeypatch.delenv("GALACTICA_CONTEXT")
    monkeypatch.setenv("HOME", "/home/ada")
    assert context_path() == Path("/home/ada/.config/galactica/context.json")
