"""What an agent does with the fleet's sealed genome, on a real disk: keeps the newest, and lives on if it cannot."""

from __future__ import annotations

import contextlib
import resource

import pytest

from galactica.agent.link.genome import SEALED_BYTES_LIMIT, GenomeKeeper
from galactica.v1 import link_pb2

FLEET = "0123456789abcdef"
SEALED = b"sealed" * 100


@pytest.fixture
def keeper(tmp_path):
    return GenomeKeeper(tmp_path, FLEET)


def genome(epoch=3, position=120, sealed=SEALED, fleet_id=FLEET):
    mark = link_pb2.GenomeMark(epoch=epoch, position=position)
    return link_pb2.Genome(mark=mark, fleet_id=fleet_id, sealed=sealed)


async def take(keeper, given):
    answer = await keeper.take(link_pb2.AttachResponse(genome=given))
    return (answer.genome_kept.mark.epoch, answer.genome_kept.mark.position), answer.genome_kept.error


async def kept(keeper):
    return (await keeper.take(link_pb2.AttachResponse(genome_wanted=link_pb2.GenomeWanted()))).genome


async def test_it_is_kept_for_its_owner_alone_and_outlives_the_agent(keeper, tmp_path):
    assert keeper.mark == link_pb2.GenomeMark()
    assert await kept(keeper) == link_pb2.Genome()
    assert await take(keeper, genome()) == ((3, 120), "")
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    again = GenomeKeeper(tmp_path, FLEET)
    assert again.mark == genome().mark
    assert await kept(again) == genome()


@pytest.mark.parametrize(("older", "is_kept"), [((3, 119), True), ((2, 900), True), ((3, 120), True)])
async def test_an_older_one_never_takes_the_place_of_a_newer(keeper, older, is_kept):
    await take(keeper, genome())
    assert await take(keeper, genome(*older, sealed=b"other")) == ((3, 120), "")
    assert (await kept(keeper) == genome()) is is_kept


@pytest.mark.parametrize("newer", [(3, 121), (4, 1)])
async def test_a_newer_one_takes_its_place(keeper, tmp_path, newer):
    await take(keeper, genome())
    assert await take(keeper, genome(*newer, sealed=b"other")) == (newer, "")
    assert (await kept(keeper)).sealed == b"other"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (genome(9, fleet_id="fedcba9876543210"), "it is of another fleet"),
        (genome(9, sealed=bytes(SEALED_BYTES_LIMIT + 1)), f"it is larger than {SEALED_BYTES_LIMIT} bytes"),
    ],
)
async def test_what_is_not_to_be_kept_is_refused_with_words(keeper, given, why):
    await take(keeper, genome())
    assert await take(keeper, given) == ((3, 120), why)
    assert await kept(keeper) == genome()


async def test_a_disk_that_takes_nothing_is_told_and_what_is_there_stays(keeper, tmp_path):
    await take(keeper, genome())
    (tmp_path / f"genome-{FLEET}.new").mkdir()  # so that no file can be written in its place
    mark, error = await take(keeper, genome(4, 1))
    assert (mark, error) == ((3, 120), "its disk does not take it: Is a directory")
    assert await kept(keeper) == genome()
    (tmp_path / f"genome-{FLEET}.new").rmdir()
    assert await take(keeper, genome(4, 1)) == ((4, 1), "")


@contextlib.contextmanager
def no_file_takes_a_byte():
    _, most = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_disk_that_takes_nothing_ends_nothing(keeper, tmp_path):
    with no_file_takes_a_byte():
        mark, error = await take(keeper, genome())
    assert (mark, error) == ((0, 0), "its disk does not take it: File too large")
    assert list(tmp_path.iterdir()) == []
    assert await take(keeper, genome()) == ((3, 120), "")


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 50, genome(fleet_id="fedcba9876543210").SerializeToString()]
)
async def test_a_file_that_is_no_genome_of_this_fleet_counts_as_none(tmp_path, content):
    (tmp_path / f"genome-{FLEET}").write_bytes(content)
    keeper = GenomeKeeper(tmp_path, FLEET)
    assert keeper.mark == link_pb2.GenomeMark()
    assert await kept(keeper) == link_pb2.Genome()
    assert await take(keeper, genome()) == ((3, 120), "")


async def test_each_fleet_has_its_own(tmp_path):
    other = GenomeKeeper(tmp_path, "fedcba9876543210")
    await take(other, genome(fleet_id="fedcba9876543210"))
    assert GenomeKeeper(tmp_path, FLEET).mark == link_pb2.GenomeMark()


async def test_other_messages_are_none_of_its_business(keeper):
    assert await keeper.take(link_pb2.AttachResponse(echo=link_pb2.Echo())) is None
