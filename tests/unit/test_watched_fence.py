"""What a watchdog goes by: only a line that it can read changes that."""

from pathlib import Path

import pytest

from galactica.agent.fencing.keeping import FenceFile, Kept
from galactica.agent.fencing.watchdog import Watched

OURS, EARLIER, LATER = "b" * 32, "a" * 32, "c" * 32
STARTED, EXTENDED = 100.0, 107.5


def seen(watched: Watched) -> float | None:
    watched.look()
    return watched.fence_at()


def fence_of(data: Path, line: Kept) -> None:
    FenceFile(data).write(line)


def spoil(data: Path) -> None:
    (data / "fence").write_text("spoilt")


def remove(data: Path) -> None:
    (data / "fence").unlink(missing_ok=True)


def of_another_boot(data: Path) -> None:
    (data / "fence").write_text(f"{'0' * 36} {900.0:020.3f} {LATER}\n")


LOSSES = [spoil, remove, of_another_boot]


def test_a_line_is_read_as_it_was_written_and_all_are_of_one_length(tmp_path):
    file, lengths = FenceFile(tmp_path), set()
    for kept in (Kept(STARTED, OURS), Kept(None, OURS), Kept(0.0, OURS)):
        file.write(kept)
        assert file.read() == kept
        lengths.add((tmp_path / "fence").stat().st_size)
    assert len(lengths) == 1


@pytest.mark.parametrize("lose", LOSSES)
def test_until_it_has_read_a_line_it_goes_by_what_it_was_started_with(tmp_path, lose):
    watched = Watched(FenceFile(tmp_path), Kept(STARTED, OURS))
    lose(tmp_path)
    assert seen(watched) == STARTED


@pytest.mark.parametrize("lose", LOSSES)
def test_a_line_that_was_there_and_is_lost_still_counts(tmp_path, lose):
    watched = Watched(FenceFile(tmp_path), Kept(STARTED, OURS))
    fence_of(tmp_path, Kept(EXTENDED, OURS))
    assert seen(watched) == EXTENDED
    lose(tmp_path)
    assert seen(watched) == EXTENDED


@pytest.mark.parametrize("line", [Kept(None, OURS), Kept(EXTENDED, LATER), Kept(None, LATER)])
@pytest.mark.parametrize("lose", LOSSES)
def test_a_line_that_says_so_ends_the_watch_and_its_loss_does_not_begin_it_again(tmp_path, line, lose):
    watched = Watched(FenceFile(tmp_path), Kept(STARTED, OURS))
    fence_of(tmp_path, line)
    assert seen(watched) is None
    lose(tmp_path)
    assert seen(watched) is None


def test_the_line_of_an_earlier_agent_is_not_that_of_a_later_one(tmp_path):
    """Ours may have been killed before it could write its first."""
    fence_of(tmp_path, Kept(STARTED, EARLIER))
    watched = Watched(FenceFile(tmp_path), Kept(EXTENDED, OURS))
    assert seen(watched) == EXTENDED
    fence_of(tmp_path, Kept(EXTENDED + 1, LATER))
    assert seen(watched) is None


def test_the_watch_begins_again_with_the_next_exclusive_cell(tmp_path):
    watched = Watched(FenceFile(tmp_path), Kept(None, OURS))
    assert seen(watched) is None
    fence_of(tmp_path, Kept(EXTENDED, OURS))
    assert seen(watched) == EXTENDED
