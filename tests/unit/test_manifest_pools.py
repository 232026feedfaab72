"""Manifests of pools: what is taken, and every mistake at its place."""

from __future__ import annotations

import pytest

from galactica.scheduler.core.model.spec import (
    Group,
    GroupKind,
    HealthSpec,
    Replace,
    RuntimeKind,
    ServerBody,
    Spec,
    digest_of,
)
from galactica.scheduler.manifest.loading import ManifestErrors, parse

WHOLE = """\
kind: pool
name: rack
size: 8
provider: cloud
server:
  size: m5.large
  disks: [{gib: 100, fast: true}, {gib: 1.5}]
  image: "0042"
  zone: null
labels: {zone: a, tier: front}
boot_within: 10m
max_age: 30d
lease: 15s
cut_off_after: 10m
replace: {surge: 2, unavailable: 1, per: {count: 10, window: 30m}}
"""

SMALL = "kind: pool\nname: rack\nprovider: local\n"


def mistakes(text: str) -> list[str]:
    with pytest.raises(ManifestErrors) as caught:
        parse(text, "rack.yaml")
    return str(caught.value).splitlines()


def pool(text: str) -> Group:
    (group,) = parse(text, "rack.yaml")
    return group


def test_a_pool_with_every_key_means_what_it_says() -> None:
    body = '{"disks":[{"fast":true,"gib":100},{"gib":1.5}],"image":"0042","size":"m5.large","zone":null}'
    assert pool(WHOLE) == Group(
        GroupKind.POOL,
        "rack",
        8,
        Spec(
            runtime=RuntimeKind.SERVER,
            health=HealthSpec(boot_within_seconds=600.0),
            server=ServerBody("cloud", body, {"zone": "a", "tier": "front"}),
        ),
        max_age_seconds=30 * 86_400.0,
        replace=Replace(2, 1, 10, 1_800.0),
        lease_seconds=15.0,
        cut_off_after_seconds=600.0,
    )


def test_what_a_pool_leaves_out_has_the_defaults_and_a_machine_has_five_minutes_to_boot() -> None:
    assert pool(SMALL) == Group(
        GroupKind.POOL,
        "rack",
        1,
        Spec(
            runtime=RuntimeKind.SERVER,
            health=HealthSpec(boot_within_seconds=300.0),
            server=ServerBody("local", "{}"),
        ),
    )


def test_a_servers_description_has_one_digest_in_whatever_order_it_is_written() -> None:
    one, other = (
        f"{SMALL}server: {{a: 1, b: {{c: x, d: y}}}}\n",
        f"{SMALL}server: {{b: {{d: y, c: x}}, a: 1}}\n",
    )
    assert digest_of(pool(one).spec) == digest_of(pool(other).spec)


def test_what_does_not_make_a_server_another_one_leaves_its_digest_alone() -> None:
    changed = f"{SMALL}size: 9\nlease: 9s\nmax_age: 1d\ncut_off_after: 1h\nreplace: {{surge: 3}}\n"
    assert digest_of(pool(changed).spec) == digest_of(pool(SMALL).spec)
    for line in ("server: {a: 1}", "labels: {zone: b}", "boot_within: 1m"):
        assert digest_of(pool(f"{SMALL}{line}\n").spec) != digest_of(pool(SMALL).spec)


def test_a_pool_and_a_service_stand_in_one_file() -> None:
    both = parse(f"{SMALL}---\nkind: service\nname: web\ncommand: [serve]\n", "both.yaml")
    assert [(group.kind, group.name) for group in both] == [
        (GroupKind.POOL, "rack"),
        (GroupKind.SERVICE, "web"),
    ]


def test_names_are_unique_across_kinds() -> None:
    assert mistakes(f"{SMALL}---\nkind: service\nname: rack\ncommand: [serve]\n") == [
        (
            "rack.yaml:6:7: name: the pool 'rack' is already defined in rack.yaml:2; names are "
            "unique across kinds"
        )
    ]


KEYS = "kind, name, size, provider, server, labels, boot_within, max_age, lease, cut_off_after, replace"
MISTAKES = [
    # what is written below kind, name and provider (in line 4 on), and what is said of it
    ("siez: 3", "4:1: siez: unknown key; did you mean 'size'?"),
    ("replicas: 3", "4:1: replicas: unknown key; a pool has size"),
    ("zzz: 3", f"4:1: zzz: unknown key; the keys are: {KEYS}"),
    ("surge: 1", "4:1: surge: unknown key here; it belongs under replace"),
    ("window: 1h", "4:1: window: unknown key here; it belongs under replace.per"),
    ("size: three", "4:7: size: must be a whole number, not 'three'"),
    ("size: -1", "4:7: size: -1 is not between 0 and 10,000"),
    ("size: 10001", "4:7: size: 10001 is not between 0 and 10,000"),
    ("server: small", "4:9: server: must be a mapping, not 'small'"),
    ("server: [small]", "4:9: server: must be a mapping, not a list"),
    ("server:", "4:1: server: is empty; give it a value, or remove the key"),
    ("server: {a: [1, {b: .inf}]}", "4:21: server.a[1].b: invalid number .inf: providers take finite numbers only"),
    ("server: {a: 1, a: 2}", "4:16: server.a: duplicate key 'a', first in line 4"),
    ("server: {a: !secret x}", "4:13: server.a: the tag !secret is not allowed; use plain values"),
    (f"server: {{a: {'x' * 70_000}}}", "4:9: server: is 70,008 bytes of JSON; the limit is 65,536"),
    ("labels: {-zone: a}", ("4:10: labels.-zone: invalid label name '-zone': use 1 to 63 letters, digits, '-', "
"'_', '.' and '/'; begin and end with a letter or digit")),
    ("labels: {zone: [a]}", "4:16: labels.zone: must be a single value, not a list"),
    ("boot_within: 5", "4:14: boot_within: '5' has no unit; write ms, s, m, h or d, for example 5s"),
    ("boot_within: 2d", "4:14: boot_within: 172800s is not between 0.1s and 86400s"),
    ("max_age: 0s", "4:10: max_age: must be greater than 0"),
    ("lease: 0s", "4:8: lease: must be greater than 0; remove it to use the fleet's lease"),
    ("lease: [5s]", "4:8: lease: must be a single value, for example 30s"),
    ("lease: 10ms", "4:8: lease: 0.01s is not between 1s and 86400s"),
    ("lease: 2m\ncut_off_after: 1m", "5:16: cut_off_after: is shorter than the lease"),
    ("cut_off_after: 0s", "4:16: cut_off_after: 0s is not between 1s and 604800s"),
    ("replace: fast", "4:10: replace: must be a mapping, not 'fast'"),
    ("replace: {surg: 1}", "4:11: replace.surg: unknown key; did you mean 'surge'?"),
    ("replace: {surge: 0}", "4:10: replace: surge and unavailable are both 0, so no server can be replaced"),
    ("replace: {unavailable: -1}", "4:24: replace.unavailable: -1 is not between 0 and 10,000"),
    ("replace: {per: {window: 1h}}", "4:11: replace.per.count: is missing; write how many servers may be replaced"),
    ("replace: {per: {count: 0, window: 1h}}", "4:24: replace.per.count: must be greater than 0, not 0"),
    ("replace: {per: {count: 1, window: 0s}}", "4:35: replace.per.window: 0s is not between 1s and 604800s"),
    ("image: hello:1", "4:1: image: unknown key"),
]  # fmt: skip


@pytest.mark.parametrize(("written", "said"), MISTAKES, ids=[written[:40] for written, _ in MISTAKES])
def test_a_mistake_in_a_pool_is_told_at_its_place(written: str, said: str) -> None:
    (told,) = mistakes(f"{SMALL}{written}\n")
    assert told.startswith(f"rack.yaml:{said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "kind: pool\n",
            [
                "rack.yaml:1:1: name: is missing; every pool needs a name",
                (
                    "rack.yaml:1:1: provider: is missing; name the provider that makes the servers, for "
                    "example local"
                ),
            ],
        ),
        (
            "kind: pol\nname: rack\nprovider: Local!\n",
            [
                "rack.yaml:1:7: kind: invalid value 'pol'; did you mean 'pool'?",
                "rack.yaml:3:11: provider: invalid provider name 'Local!': use 1 to 63 lower-case letters, "  # noqa: ISC004
                "digits and '-'; begin and end with a letter or digit",
            ],
        ),
        ("name: rack\nprovider: local\n", ["rack.yaml:1:1: kind: is missing; write kind: pool"]),
        (
            "kind: service\nname: web\ncommand: [x]\nsize: 3\n",
            ["rack.yaml:4:1: size: unknown key; a service has replicas"],
        ),
    ],
)
def test_a_pool_that_is_wrong_as_a_whole_is_told_so(text: str, said: list[str]) -> None:
    assert mistakes(text) == said


def test_all_mistakes_of_a_pool_are_told_at_once() -> None:
    text = "kind: pool\nname: Rack\nsize: x\nprovider: local\nreplace: {surge: 0, per: {}}\nlease: 5\n"
    assert [told.split(": ")[1] for told in mistakes(text)] == [
        "name",
        "size",
        "replace",
        "replace.per.count",
        "lease",
    ]
