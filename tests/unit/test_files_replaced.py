"""Files of the agent that are replaced whole."""

import stat

import pytest

from galactica.agent.files import replace_file, replace_secret_file


@pytest.mark.parametrize("write", [replace_file, replace_secret_file])
def test_file_has_the_new_content_and_no_draft_is_left(tmp_path, write):
    path = tmp_path / "kept"
    path.write_bytes(b"old")
    write(path, b"new")
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == {"kept": b"new"}


@pytest.mark.parametrize("write", [replace_file, replace_secret_file])
def test_file_that_cannot_be_written_keeps_its_content_and_leaves_no_draft(tmp_path, write):
    path = tmp_path / "kept"
    path.mkdir()
    with pytest.raises(OSError, match="kept"):
        write(path, b"new")
    assert [one.name for one in tmp_path.iterdir()] == ["kept"]
    assert path.is_dir()


def test_secret_is_its_owners_alone_also_where_a_draft_was_left_open_to_all(tmp_path):
    left = tmp_path / "key.new"
    left.write_bytes(b"")
    left.chmod(0o644)
    replace_secret_file(tmp_path / "key", b"secret")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
