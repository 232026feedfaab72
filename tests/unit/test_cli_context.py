"""The context file: private, whole, and told about plainly where it is not."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from galactica.scheduler.settings.context import (
    Context,
    context_path,
    create_context,
    read_context,
    write_context,
)
from galactica.scheduler.settings.errors import CommandFailed, ExitCode

CONTEXT = Context("127.0.0.1:7400", "ca", "cert", "secret-key", "demo", "ada", "admin")


def test_what_is_written_is_read_and_only_its_owner_can(tmp_path: Path):
    path = tmp_path / "new" / "context.json"
    write_context(path, CONTEXT)
    assert read_context(path) == CONTEXT
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["context.json"]


def test_a_newer_context_takes_the_place_of_the_older(tmp_path: Path):
    path = tmp_path / "context.json"
    write_context(path, CONTEXT)
    newer = Context("127.0.0.1:7500", "ca", "cert", "key", "demo", "ada", "admin")
    write_context(path, newer)
    assert read_context(path) == newer


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
    write_context(path, CONTEXT)
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


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", '{"scheduler": 1}', "\xff", "[" * 100_000])
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
