"""Manifests: what is taken, and every mistake at its place."""

from __future__ import annotations

import pytest

from galactica.scheduler.core.model.spec import (
    ExecProbe,
    Group,
    GroupKind,
    GrpcProbe,
    HealthSpec,
    HttpProbe,
    Placement,
    Resources,
    RuntimeKind,
    Spec,
    Stop,
    TcpProbe,
)
from galactica.scheduler.manifest.loading import load, parse
from tests.support.manifests import SMALL, mistakes

WHOLE = """\
kind: service
name: web
replicas: 6
runtime: docker
image: hello:1
command: ["httpd", "-f", "-p", "8080"]
ports: {http: 8080}
env: {GREETING: hello}
resources: {cpu: 0.1, memory: 64MiB, pids: 64}
health: {http: {port: http, path: /}, every: 1s, timeout: 500ms, sick_after: 3, boot_within: 30s}
stop: {signal: SIGTERM, grace: 10s}
placement: {spread: server, require: {zone: a}}
writable: [/var/cache/app]
exclusive: true
max_age: 30d
drift: report
"""


def spec_of(text: str) -> Spec:
    (group,) = parse(text, "web.yaml")
    return group.spec


def test_a_manifest_with_every_key_means_what_it_says():
    assert parse(WHOLE, "web.yaml") == (
        Group(
            GroupKind.SERVICE,
            "web",
            6,
            Spec(
                runtime=RuntimeKind.DOCKER,
                image="hello:1",
                command=("httpd", "-f", "-p", "8080"),
                ports={"http": 8080},
                env={"GREETING": "hello"},
                resources=Resources(100, 64 * 2**20, 64),
                health=HealthSpec(HttpProbe("http", "/"), 1.0, 0.5, 3, 30.0),
                stop=Stop("SIGTERM", 10.0),
                writable=("/var/cache/app",),
                placement=Placement("server", {"zone": "a"}),
                exclusive=True,
            ),
            max_age_seconds=30 * 86_400.0,
            replace_touched=False,
        ),
    )


def test_what_is_left_out_has_the_defaults_of_the_model():
    assert parse(SMALL, "web.yaml") == (
        Group(GroupKind.SERVICE, "web", 1, Spec(runtime=RuntimeKind.PROCESS, command=("serve",))),
    )


def test_an_image_alone_means_docker():
    assert spec_of("kind: service\nname: web\nimage: hello:1\n") == Spec(RuntimeKind.DOCKER, image="hello:1")


def test_auto_lets_a_process_have_any_free_port():
    assert spec_of(f"{SMALL}ports: {{http: auto}}\n").ports == {"http": 0}


@pytest.mark.parametrize(
    ("probe", "meant"),
    [
        ("http: {port: p}", HttpProbe("p", "/")),
        ("http: {port: p, path: /ready?deep=1}", HttpProbe("p", "/ready?deep=1")),
        ("tcp: {port: p}", TcpProbe("p")),
        ("exec: {command: [test, -e, /ok]}", ExecProbe(("test", "-e", "/ok"))),
        ("grpc: {port: p, service: shop.Cart}", GrpcProbe("p", "shop.Cart")),
    ],
)
def test_each_probe_can_be_asked_for(probe, meant):
    spec = spec_of(f"{SMALL}ports: {{p: 80}}\nhealth: {{{probe}}}\n")
    assert spec.health == HealthSpec(meant)


def test_the_default_timeout_is_never_above_the_time_between_probes():
    health = spec_of(f"{SMALL}ports: {{p: 80}}\nhealth: {{tcp: {{port: p}}, every: 200ms}}\n").health
    assert (health.every_seconds, health.timeout_seconds) == (0.2, 0.2)


def test_values_of_the_environment_are_taken_as_they_are_written():
    env = "env: {VERSION: 1.10, DEBUG: true, DAY: 2026-01-31, OCTAL: 010, EMPTY: '', COUNTRY: no}\n"
    assert spec_of(SMALL + env).env == {
        "VERSION": "1.10",
        "DEBUG": "true",
        "DAY": "2026-01-31",
        "OCTAL": "010",
        "EMPTY": "",
        "COUNTRY": "no",
    }


@pytest.mark.parametrize(
    ("text", "amount"),
    [("64MiB", 64 * 2**20), ("1GiB", 2**30), ("64M", 64 * 10**6), ("1.5GiB", 3 * 2**29), ("7MB", 7 * 10**6)],
)
def test_memory_is_read_with_its_unit(text, amount):
    assert spec_of(f"{SMALL}resources: {{memory: {text}}}\n").resources == Resources(memory_bytes=amount)


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("1s", 1.0), ("2m", 120.0), ("1h", 3_600.0), ("1.5s", 1.5)]
)
def test_durations_are_read_with_their_unit(text, seconds):
    assert spec_of(f"{SMALL}stop: {{grace: {text}}}\n").stop == Stop("SIGTERM", seconds)


def test_documents_of_one_file_and_of_several_come_in_order(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "---\nkind: service\nname: a\ncommand: [x]\n---\n---\nkind: service\nname: b\ncommand: [x]\n"
    )
    (tmp_path / "c.yaml").write_text("kind: service\nname: c\ncommand: [x]\n")
    groups = load([str(tmp_path / "a.yaml"), str(tmp_path / "c.yaml")])
    assert [group.name for group in groups] == ["a", "b", "c"]


def test_aliases_work_within_a_document():
    spec = spec_of(
        "kind: service\nname: web\ncommand: &words [serve, fast]\nhealth: {exec: {command: *words}}\n"
    )
    assert (spec.command, spec.health.probe) == (("serve", "fast"), ExecProbe(("serve", "fast")))


MISTAKES = [
    # what is written below kind, name and command (in line 4 on), and what is said of it
    ("replcas: 6", "4:1: replcas: unknown key; did you mean 'replicas'?"),
    ("every: 1s", "4:1: every: unknown key here; it belongs under health"),
    ("replicas: six", "4:11: replicas: must be a whole number, not 'six'"),
    ("replicas: 1.5", "4:11: replicas: must be a whole number, not '1.5'"),
    ("replicas: true", "4:11: replicas: must be a whole number, not 'true'"),
    ("replicas: -1", "4:11: replicas: -1 is not between 0 and 100,000"),
    ("replicas: 100001", "4:11: replicas: 100001 is not between 0 and 100,000"),
    ("replicas:", "4:1: replicas: is empty; give it a value, or remove the key"),
    ("replicas: [1]", "4:11: replicas: must be a single value, not a list"),
    (f"replicas: {'9' * 5_000}", "4:11: replicas: a number of 5000 digits is too long"),
    ("runtime: doker", "4:10: runtime: invalid value 'doker'; did you mean 'docker'?"),
    ("runtime: vm", "4:10: runtime: invalid value 'vm'; write docker or process"),
    ("runtime: docker", "1:1: image: is missing; the docker runtime needs one"),
    (
        "runtime: process\nimage: hello:1",
        "5:8: image: a process has no image; remove it, or write runtime: docker",
    ),
    ('image: "hello 1"', "4:8: image: invalid image 'hello 1': write a reference, for example hello:1"),
    (
        "image: hello:1\nports: {http: auto}",
        "5:15: ports.http: auto is for processes only; write the port number",
    ),
    ("ports: {http: 0}", "4:15: ports.http: 0 is not between 1 and 65535; write auto for a free port"),
    ("ports: {http: 65536}", "4:15: ports.http: 65536 is not between 1 and 65535"),
    ("ports: {http: eighty}", "4:15: ports.http: must be a number from 1 to 65535, or auto, not 'eighty'"),
    (
        "ports: {Http: 80}",
        (
            "4:9: ports.Http: invalid port name 'Http': use 1 to 32 lower-case letters, digits and '-'; "
            "begin and end with a letter or digit"
        ),
    ),
    ("ports: {a: 80, b: 80}", "4:19: ports.b: port 80 is already used by 'a'"),
    ("ports: [80]", "4:8: ports: must be a mapping, not a list"),
    ("env: {1A: x}", "4:7: env.1A: invalid variable name '1A'"),
    ("env: {CELL_ID: x}", "4:7: env.CELL_ID: the agent sets CELL_ID; choose another name"),
    ("ports: {a-b: 80}\nenv: {PORT_A_B: x}", "5:7: env.PORT_A_B: the agent sets PORT_A_B"),
    ("env: {A: }", "4:7: env.A: is empty"),
    ("env: {A: [1]}", "4:10: env.A: must be a single value, not a list"),
    ('env: {A: "\\0"}', "4:10: env.A: contains a NUL character"),
    (f"env: {{A: {'x' * 70_000}}}", "4:6: env: is 70,003 bytes long; the limit is 65,536"),
    (
        "env: {A: '{port.htp}'}\nports: {http: 80}",
        "4:10: env.A: no such port: {port.htp}; did you mean 'http'?",
    ),
    ("env: {A: '{port.x}'}", "4:10: env.A: no such port: {port.x}; the service has no ports"),
    (
        "resources: {cpu: 100m}",
        "4:18: resources.cpu: must be a number of cores, for example 0.5, not '100m'; did you mean 0.1?",
    ),
    (
        "resources: {cpu: 0}",
        "4:18: resources.cpu: must be at least 0.001 cores, not 0; remove it for no limit",
    ),
    ("resources: {cpu: .nan}", "4:18: resources.cpu: must be at least 0.001 cores, not .nan"),
    ("resources: {cpu: 2000}", "4:18: resources.cpu: must be between 0.001 and 1024 cores"),
    (
        "resources: {memory: 64}",
        "4:21: resources.memory: '64' has no unit; write KiB, MiB or GiB, for example 64MiB",
    ),
    (
        "resources: {memory: 64Mi}",
        "4:21: resources.memory: unknown unit 'Mi'; write KiB, MiB or GiB, for example 64MiB",
    ),
    ("resources: {memory: -1MiB}", "4:21: resources.memory: invalid amount of memory '-1MiB'"),
    ("resources: {memory: 9999999TiB}", "4:21: resources.memory: must be at most 1024 TiB"),
    ("image: hello:1\nresources: {memory: 1MiB}", "5:21: resources.memory: a container needs at least 6MiB"),
    ("resources: {pids: 0}", "4:19: resources.pids: must be greater than 0, not 0; remove it for no limit"),
    ("resources: {memroy: 1GiB}", "4:13: resources.memroy: unknown key; did you mean 'memory'?"),
    ("resources:", "4:1: resources: is empty; give it a value, or remove the key"),
    ("health: {every: 1s}", "4:9: health: has no probe; add one of http, tcp, exec, grpc"),
    (
        "ports: {p: 80}\nhealth: {http: {port: p}, tcp: {port: p}}",
        "5:27: health.tcp: second probe after http; a service has exactly one probe",
    ),
    ("health: {http: {path: /}}", "4:10: health.http.port: is missing; name one of the service's ports"),
    (
        "ports: {http: 80}\nhealth: {http: {port: htp}}",
        "5:23: health.http.port: no such port: 'htp'; did you mean 'http'?",
    ),
    (
        "ports: {a: 80, b: 81}\nhealth: {tcp: {port: zzz}}",
        "5:22: health.tcp.port: no such port: 'zzz'; the ports are: a, b",
    ),
    (
        "ports: {p: 80}\nhealth: {http: {port: p, path: ready}}",
        "5:32: health.http.path: invalid path 'ready'",
    ),
    ("health: {exec: {}}", "4:10: health.exec.command: is missing"),
    ("health: {exec: {command: true}}", '4:26: health.exec.command: must be a list of words; write ["true"]'),
    (
        "health: {exec: {command: [x]}, every: 5}",
        "4:39: health.every: '5' has no unit; write ms, s, m, h or d, for example 5s",
    ),
    (
        "health: {exec: {command: [x]}, every: 1ms}",
        "4:39: health.every: 0.001s is not between 0.01s and 3600s",
    ),
    (
        "health: {exec: {command: [x]}, every: 1sec}",
        "4:39: health.every: unknown unit 'sec'; write ms, s, m, h or d, for example 1s",
    ),
    (
        "health: {exec: {command: [x]}, timeout: 0s}",
        "4:41: health.timeout: 0s is not between 0.001s and 3600s",
    ),
    (
        "health: {exec: {command: [x]}, boot_within: 25h}",
        "4:45: health.boot_within: 90000s is not between 0.001s and 86400s",
    ),
    (
        "health: {exec: {command: [x]}, sick_after: 0}",
        "4:44: health.sick_after: 0 is not between 1 and 1,000 failures",
    ),
    (
        "stop: {signal: TERM}",
        "4:16: stop.signal: 'TERM' is not a signal that ends a program; did you mean 'SIGTERM'?",
    ),
    ("stop: {signal: SIGSTOP}", "4:16: stop.signal: 'SIGSTOP' is not a signal that ends a program"),
    ("stop: {grace: 0.0001s}", "4:15: stop.grace: '0.0001s' is not a whole number of milliseconds"),
    ("stop: {grace: 2h}", "4:15: stop.grace: 7200s is not between 0s and 3600s"),
    ("placement: {spread: servr}", "4:21: placement.spread: invalid value 'servr'; did you mean 'server'?"),
    ("placement: {require: {zone: [a]}}", "4:29: placement.require.zone: must be a single value, not a list"),
    (
        "placement: {require: {-zone: a}}",
        (
            "4:23: placement.require.-zone: invalid label name '-zone': "
            "use 1 to 63 letters, digits, '-', '_', '.' and '/'; begin and end with a letter or digit"
        ),
    ),
    (
        "writable: [/tmp/x]",
        "4:11: writable: is for containers only; a process writes below its own directory ($CELL_DIRECTORY)",
    ),
    (
        "image: hello:1\nwritable: [cache]",
        "5:12: writable[0]: invalid path 'cache': write an absolute path below '/'",
    ),
    ("image: hello:1\nwritable: [/a, /a/../etc]", "5:16: writable[1]: invalid path '/a/../etc'"),
    (
        "image: hello:1\nwritable: [/]",
        "5:12: writable[0]: invalid path '/': write an absolute path below '/'",
    ),
    ("image: hello:1\nwritable: [/a, /a]", "5:16: writable[1]: duplicate path '/a'"),
    ("name: again", "4:1: name: duplicate key 'name', first in line 2"),
    ("env: {A: 1, A: 2}", "4:13: env.A: duplicate key 'A', first in line 4"),
    ("env: {A: !secret x}", "4:10: env.A: the tag !secret is not allowed; use plain values"),
    (
        "env: {A: !!python/object:os.system x}",
        "4:10: env.A: the tag !!python/object:os.system is not allowed",
    ),
    ("[a]: b", "4:1: a key must be plain text, not a list or a mapping"),
]


@pytest.mark.parametrize(("written", "said"), MISTAKES, ids=[written[:40] for written, _ in MISTAKES])
def test_a_mistake_is_told_at_its_place(written, said):
    (told,) = mistakes(f"{SMALL}{written}\n")
    assert told.startswith(f"web.yaml:{said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ["web.yaml: the file is empty; a manifest begins with kind: service or kind: pool"]),
        ("- a\n", ["web.yaml:1:1: a manifest is a mapping that begins with kind: service or kind: pool"]),
        ("name: web\ncommand: [x]\n", ["web.yaml:1:1: kind: is missing; write kind: service"]),
        ("kind: service\ncommand: [x]\n", ["web.yaml:1:1: name: is missing; every service needs a name"]),
        (
            "kind: service\nname: Web_1\ncommand: [x]\n",
            ["web.yaml:2:7: name: invalid name 'Web_1': use 1 to 63 lower-case letters, digits and '-'; begin and end with a letter or digit"],  # noqa: E501
        ),
        (
            "kind: servise\nname: w\ncommand: [x]\n",
            ["web.yaml:1:7: kind: invalid value 'servise'; did you mean 'service'?"],
        ),
        ("kind: cronjob\nnodes: 3\n", ["web.yaml:1:7: kind: invalid value 'cronjob'; write service or pool"]),
        (
            "kind: service\nname: web\n",
            ['web.yaml:1:1: command: is missing; a process needs one, for example ["program", "argument"]'],
        ),
        (
            "kind: service\nname: web\ncommand: httpd -f\n",
            ['web.yaml:3:10: command: must be a list of words; write ["httpd", "-f"] (here: httpd -f)'],
        ),
        ("kind: service\nname: web\ncommand: ['']\n", ["web.yaml:3:11: command[0]: the program's name is empty"]),
        (
            "kind: service\nname: web\ncommand: [serve, '{port.http}']\n",
            ["web.yaml:3:18: command[1]: no such port: {port.http}; the service has no ports"],
        ),
        (
            "kind: service\nname: 'web\n",
            ["web.yaml:3:1: invalid YAML: missing closing quote"],
        ),
        (
            "kind: service\n\tname: web\n",
            ["web.yaml:2:1: invalid YAML: tab used for indentation (here: name: web)"],
        ),
        ("a: *nowhere\n", ["web.yaml:1:4: invalid YAML: undefined alias '*nowhere' (here: a: *nowhere)"]),
        ("a: b\x07\n", ["web.yaml:1:5: the character #x07 is not allowed in YAML"]),
        pytest.param("[" * 5_000, ["web.yaml:1:1: the document is nested too deeply"], id="nested"),
        ("a: &a [*a]\n", ["web.yaml:1:4: the anchor &a contains an alias of itself"]),
    ],
)  # fmt: skip
def test_a_document_that_is_wrong_as_a_whole_is_told_so(text, said):
    assert mistakes(text) == said
