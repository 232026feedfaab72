"""Values that nothing can run are mistakes in the manifest, each told at its place."""

from __future__ import annotations

import pytest

from galactica.scheduler.core.validation.pools import read_body
from galactica.scheduler.manifest.loading import parse
from tests.support.manifests import SMALL, mistakes

MISTAKES = [
    ("resources: {cpu: 1e308}", "4:18: resources.cpu: must be between 0.001 and 1024 cores"),
    ("resources: {cpu: 1e999}", "4:18: resources.cpu: must be between 0.001 and 1024 cores"),
    ("image: hello:1\nresources: {cpu: 0.009}", "5:18: resources.cpu: a container needs at least 0.01 cores"),
    (
        "ports: {p: 80}\nhealth: {http: {port: p, path: /prüfen?a=%20}}",
        (
            "5:32: health.http.path: invalid path '/prüfen?a=%20': "
            "write it as it is sent, for example '/pr%C3%BCfen?a=%20'"
        ),
    ),
    (
        f"ports: {{p: 80}}\nhealth: {{grpc: {{port: p, service: {'ü' * 64}}}}}",
        f"5:35: health.grpc.service: invalid service name '{'ü' * 64}': use at most 127 bytes",
    ),
    ("stop: {signal: SIGTSTP}", "4:16: stop.signal: 'SIGTSTP' is not a signal that ends a program"),
    ("image: hello:1\nwritable: [/a, /a/]", "5:16: writable[1]: duplicate path '/a/'"),
    (f"image: hello:1\nwritable: [/{'x' * 256}]", "5:12: writable[0]: invalid path '/xxx"),
    *(
        (f"image: hello:1\nwritable: [{path}]", f"5:12: writable[0]: '{path}' is the engine's own")
        for path in ("/proc", "/proc/x", "/sys/", "/sys/fs/cgroup", "/dev", "/etc/hosts", "/sbin")
    ),
    (
        "image: Foo/Bar:1",
        "4:8: image: invalid image 'Foo/Bar:1': the name must be lower-case; did you mean 'foo'?",
    ),
    ("image: 'foo:1:2'", "4:8: image: invalid image 'foo:1:2': the tag '1:2' is invalid"),
    ("image: 'foo:'", "4:8: image: invalid image 'foo:': the tag '' is invalid"),
    (
        "image: foo..bar",
        "4:8: image: invalid image 'foo..bar': 'foo..bar' is invalid: use lower-case letters",
    ),
    ("image: a//b", "4:8: image: invalid image 'a//b': '' is invalid: use lower-case letters"),
    ("image: a@sha256:12", "4:8: image: invalid image 'a@sha256:12': what follows '@' must be a digest"),
    ("image: a.b-:80/c", "4:8: image: invalid image 'a.b-:80/c': the registry 'a.b-:80' is no address"),
    (
        f"image: {'a' * 256}",
        f"4:8: image: invalid image '{'a' * 77}...': the name is longer than 255 characters",
    ),
    ('env: {A: "\\udfff"}', "4:10: env.A: half of a surrogate pair is no character"),
    ('env: {"\\ud800": a}', "4:7: env: half of a surrogate pair is no character"),
    ('placement: {require: {zone: "\\ud800"}}', "4:29: placement.require.zone: half of a surrogate pair"),
    ('max_age: "\\ud800"', "4:10: max_age: half of a surrogate pair is no character"),
]


@pytest.mark.parametrize(("written", "said"), MISTAKES, ids=[written[:40] for written, _ in MISTAKES])
def test_a_value_that_nothing_can_run_is_told_at_its_place(written, said):
    (told,) = mistakes(f"{SMALL}{written}\n")
    assert told.startswith(f"web.yaml:{said}")


@pytest.mark.parametrize("program", ["/", "bin/", ".", "a/..", "x" * 256, "/x" * 2_048])
def test_a_command_that_is_no_file_on_any_server_is_a_mistake(program):
    (told,) = mistakes(f"kind: service\nname: web\ncommand: ['{program}']\n")
    assert told.startswith("web.yaml:3:11: command[0]: ")


@pytest.mark.parametrize(
    "image",
    [
        "hello:1",
        "localhost/a",
        "localhost:5000/a/b__c",
        "Registry.example.com:80/a-b.c/d:T_1@sha256:" + "0" * 64,
        "sha256:" + "0" * 64,
    ],
)
def test_images_that_engines_can_read_are_taken(image):
    (group,) = parse(f"kind: service\nname: web\nimage: '{image}'\n", "web.yaml")
    assert group.spec.image == image


def test_a_character_that_json_writes_as_a_pair_of_escapes_is_one_character():
    (group,) = parse(f'{SMALL}env: {{A: "\\ud83d\\ude00"}}\n', "web.yaml")
    assert group.spec.env == {"A": "\N{GRINNING FACE}"}


def test_a_server_body_of_a_call_has_no_half_characters_either():
    assert read_body('{"a":"\\ud83d\\ude00"}') == '{"a":"\\ud83d\\ude00"}'
    with pytest.raises(ValueError, match="is not valid standard JSON"):
        read_body('{"a":"\\ud800"}')
