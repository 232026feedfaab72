"""What is in a genome, when it changes, how it is written, sealed and opened, and who is chosen to keep it."""

import zlib

import msgspec
import pytest
from msgspec.structs import replace

from galactica.scheduler.core.genome import UNPACKED_BYTES_LIMIT, GenomeDamaged, GenomeReader, decode, encode
from galactica.scheduler.core.model.fleet import Phase, Server
from galactica.scheduler.core.model.genome import Genome, GenomeMark, GenomeServer
from galactica.scheduler.core.model.requests import CondemnCell, DeleteGroup, DrainServer
from galactica.scheduler.link.genomes import HOLDERS, chosen
from galactica.scheduler.security.ca import AUTHORITY_FILE, CertificateAuthority
from galactica.scheduler.security.sealing import SEALED_BYTES_LIMIT, SealBroken, header_of, seal, unseal
from tests.support.world import World, pool, service, spec

MARK = GenomeMark(3, 120)
NEWER_PART = 10


def small_fleet() -> World:
    world = World()
    world.join("a", "b", labels={"zone": "x"})
    world.apply(pool("rack", 1), service("web", 3, spec(env={"KEY": "hush"})))
    world.advance(10)
    return world


def read(world: World) -> Genome:
    return GenomeReader().read(world.core.fleet)


# --- content ------------------------------------------------------------------------------------------------------


def test_it_has_what_is_wanted_and_who_belongs_to_the_fleet() -> None:
    world = small_fleet()
    found = read(world)
    assert [(one.group.name, one.group.replicas, one.unused) for one in found.groups] == [
        ("rack", 1, 200),
        ("web", 3, 200),
    ]
    assert [one.group for one in found.groups] == [
        world.core.fleet.groups[name].group for name in ("rack", "web")
    ]
    by_id = {one.id: one for one in found.servers}
    assert set(by_id) == {"a", "b", "rack/0.1"}
    assert (by_id["a"].labels, by_id["a"].pool) == ({"zone": "x"}, "")
    assert (by_id["rack/0.1"].pool, by_id["rack/0.1"].ref) == ("rack", "ref-rack/0.1")


def test_it_stays_the_same_while_cells_are_replaced_and_changes_with_what_is_wanted() -> None:
    world, reader = small_fleet(), GenomeReader()
    before = reader.read(world.core.fleet)
    for number in range(3):
        world.ask(CondemnCell(f"web/{number}.1"))
        world.advance(10)
    assert reader.read(world.core.fleet) == before == read(world)
    world.apply(service("web", 4, spec(env={"KEY": "hush"})))
    after = reader.read(world.core.fleet)
    assert after != before
    assert after == read(world)


def test_generations_are_reserved_before_they_are_used_up() -> None:
    state = small_fleet().core.fleet.groups["web"]
    for newest, unused in ((1, 200), (99, 200), (100, 300), (199, 300), (200, 400)):
        slot = replace(state.slots[0], next_generation=newest)
        fleet = replace(World().core.fleet)
        fleet = replace(
            fleet, groups=fleet.groups.insert("web", replace(state, slots=state.slots.insert(0, slot)))
        )
        assert GenomeReader().read(fleet).groups[0].unused == unused


def test_deleted_names_lost_and_leaving_servers() -> None:
    world = small_fleet()
    world.ask(DeleteGroup("web"))
    world.advance(10)
    world.ask(DrainServer("a"))
    world.detach("b")
    world.advance(30)
    found = read(world)
    assert found.unused == {"web": 200}
    assert {one.id: one.phase for one in found.servers} == {
        "a": Phase.DECOMMISSIONED,
        "rack/0.1": Phase.READY,
    }, "b is lost: it may join again"


# --- bytes --------------------------------------------------------------------------------------------------------


def test_it_is_read_as_it_was_written() -> None:
    found = read(small_fleet())
    assert decode(encode(found)) == found
    assert decode(encode(Genome())) == Genome()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not complete"),
        (b"nonsense", "incorrect header"),
        (encode(Genome(servers=(GenomeServer("a", 1),)))[:-NEWER_PART], "not complete"),
        (zlib.compress(b"[]"), "Expected `object`"),
        (zlib.compress(b'{"groups": 7}'), r"\$.groups"),
    ],
)
def test_what_is_no_genome_is_refused_with_words(data: bytes, why: str) -> None:
    with pytest.raises(GenomeDamaged, match=why):
        decode(data)


def test_a_bomb_is_not_unfolded() -> None:
    bomb = zlib.compress(b'{"unused": {' + b" " * (UNPACKED_BYTES_LIMIT + 1))
    assert len(bomb) < 100_000
    with pytest.raises(GenomeDamaged, match=f"larger than {UNPACKED_BYTES_LIMIT} bytes"):
        decode(bomb)


def test_fields_of_a_newer_version_are_passed_over() -> None:
    plain = msgspec.to_builtins(read(small_fleet()))
    plain["colour"] = "red"
    assert decode(zlib.compress(msgspec.json.encode(plain))) == read(small_fleet())


# --- seals --------------------------------------------------------------------------------------------------------


@pytest.fixture
def ca(tmp_path):
    return CertificateAuthority.open_or_create(tmp_path / "ca", "alpha")


def test_only_the_ca_opens_what_it_sealed(ca, tmp_path) -> None:
    found = read(small_fleet())
    sealed = seal(ca, found, MARK)
    assert unseal(ca, sealed) == (MARK, found)
    again = CertificateAuthority.open_or_create(tmp_path / "ca", "alpha")
    assert unseal(again, sealed) == (MARK, found), "a later start has the same key"
    assert seal(ca, found, MARK) != sealed, "each seal has a nonce of its own"
    assert (header_of(sealed).mark, header_of(sealed).fleet_id) == (MARK, ca.fleet_id)
    assert b"hush" not in sealed
    assert b"web" not in sealed


def test_another_ca_opens_nothing(ca, tmp_path) -> None:
    other = CertificateAuthority.open_or_create(tmp_path / "other", "alpha")
    sealed = seal(ca, Genome(), MARK)
    with pytest.raises(SealBroken, match=f"of the fleet with the id {ca.fleet_id}"):
        unseal(other, sealed)
    disguised = sealed[:NEWER_PART] + other.fleet_id.encode() + sealed[NEWER_PART + 16 :]
    with pytest.raises(SealBroken, match="was changed, or another CA sealed it"):
        unseal(other, disguised)


def test_another_key_under_the_same_fleet_id_opens_nothing(ca, tmp_path) -> None:
    """As a CA that was made anew and given the id of the old one."""
    stolen = (tmp_path / "ca" / AUTHORITY_FILE).read_bytes()
    assert ca.fleet_id not in stolen.decode(errors="replace")
    other = CertificateAuthority.open_or_create(tmp_path / "other", "alpha")
    assert ca.key_for(b"galactica genome") != other.key_for(b"galactica genome")
    assert ca.key_for(b"galactica genome") != ca.key_for(b"something else")


def test_no_byte_of_it_can_be_changed(ca) -> None:
    sealed = seal(ca, read(small_fleet()), MARK)
    for place in [*range(60), len(sealed) - 1]:
        changed = sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :]
        with pytest.raises(SealBroken):
            unseal(ca, changed)


@pytest.mark.parametrize("length", [0, 8, 42, 53, 60, 200])
def test_part_of_it_is_nothing(ca, length: int) -> None:
    with pytest.raises(SealBroken):
        unseal(ca, seal(ca, read(small_fleet()), MARK)[:length])


def test_what_is_too_large_or_too_new_is_told_so(ca) -> None:
    sealed = seal(ca, Genome(), MARK)
    with pytest.raises(SealBroken, match=f"larger than {SEALED_BYTES_LIMIT} bytes"):
        header_of(sealed + bytes(SEALED_BYTES_LIMIT))
    with pytest.raises(SealBroken, match="version 2, but this program reads version 1"):
        header_of(sealed[:9] + b"\x02" + sealed[10:])


# --- who keeps it -------------------------------------------------------------------------------------------------


def servers(*names: str, pool: str = "", zone: str = "") -> list[Server]:
    return [Server(name, 1, Phase.READY, labels={"zone": zone} if zone else {}, pool=pool) for name in names]


def test_all_keep_it_where_there_are_few() -> None:
    assert set(chosen(servers("a", "b", "c"), HOLDERS)) == {"a", "b", "c"}
    assert chosen([], HOLDERS) == []


def test_it_is_spread_over_pools_and_zones() -> None:
    many = servers(*(f"a{n}" for n in range(50)), zone="x") + servers("b1", "b2", zone="y")
    many += servers("p/0.1", "p/1.1", "p/2.1", pool="p")
    found = chosen(many, HOLDERS)
    assert len(found) == HOLDERS
    places = {(one.pool, one.labels.get("zone", "")) for one in many if one.id in found}
    assert places == {("", "x"), ("", "y"), ("p", "")}


def test_one_server_more_or_less_moves_at_most_one_copy() -> None:
    many = servers(*(f"s{n}" for n in range(40)), zone="x") + servers(*(f"t{n}" for n in range(40)), zone="y")
    before = set(chosen(many, HOLDERS))
    assert set(chosen(list(reversed(many)), HOLDERS)) == before
    for gone in many:
        after = set(chosen([one for one in many if one is not gone], HOLDERS))
        assert len(before - after) == (gone.id in before)
    for number in range(30):
        assert len(before - set(chosen([*many, *servers(f"new{number}", zone="x")], HOLDERS))) <= 1
