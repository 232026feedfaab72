"""Which providers there are: the file, its mistakes, and entry points."""

import tomllib
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from galactica.scheduler.core.model.spec import RuntimeKind
from galactica.scheduler.providers.configuration import (
    ENTRY_POINT_GROUP,
    ConfigurationError,
    Entry,
    make_suppliers,
    read_providers,
)

ROOT = Path(__file__).parents[2]


def write(tmp_path, text):
    path = tmp_path / "providers.yaml"
    path.write_text(text)
    return path


def test_without_a_file_there_is_local_alone(tmp_path):
    assert read_providers(None, tmp_path) == {"local": Entry(kind="local")}


def test_file_in_the_data_directory_is_read_and_local_stays(tmp_path):
    write(
        tmp_path,
        """
        providers:
          lab:
            kind: exec
            scheduler: 10.77.0.1:7400
            enrolment: 10.77.0.1:7401
            runtimes: [docker]
            arguments: [--bus, mqtt://10.77.0.1]
            options: {program: [/usr/bin/lab], timeout: 30}
        """,
    )
    assert read_providers(None, tmp_path) == {
        "local": Entry(kind="local"),
        "lab": Entry(
            kind="exec",
            scheduler="10.77.0.1:7400",
            enrolment="10.77.0.1:7401",
            runtimes=(RuntimeKind.DOCKER,),
            arguments=("--bus", "mqtt://10.77.0.1"),
            options={"program": ["/usr/bin/lab"], "timeout": 30},
        ),
    }


def test_json_is_read_too(tmp_path):
    path = write(tmp_path, '{"providers": {"local": {"kind": "local", "options": {"stop_seconds": 3}}}}')
    assert read_providers(path, tmp_path / "else") == {
        "local": Entry(kind="local", options={"stop_seconds": 3})
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "begin with 'providers:'"),
        ("providers: {lab: {}}", "providers.lab.kind: Field required"),
        (
            "providers: {lab: {kind: exec, program: x}}",
            "providers.lab.program: Extra inputs are not permitted",
        ),
        (
            "providers: {lab: {kind: exec, scheduler: '::1:7400'}}",
            "invalid address '::1:7400': use HOST:PORT",
        ),
        ("providers: {lab: {kind: exec, scheduler: here}}", "invalid address 'here': use HOST:PORT"),
        ("providers: {lab: {kind: exec, runtimes: [server]}}", "an agent runs process or docker cells"),
        ("providers: {Lab_1: {kind: exec}}", "invalid name Lab_1"),
        ("provider: {}", "provider: Extra inputs are not permitted"),
        ("providers: {a: 1}\nproviders: {a: 2}", r"providers.yaml:2:1: found duplicate key"),
        ("providers: [", r"providers.yaml:1:13: "),
        ("\x00", "invalid YAML"),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path, text, says):
    with pytest.raises(ConfigurationError, match=says):
        read_providers(write(tmp_path, text), tmp_path)


def test_file_that_was_named_and_is_not_there_is_a_mistake(tmp_path):
    with pytest.raises(ConfigurationError, match="no such providers' file: .*nowhere.yaml"):
        read_providers(tmp_path / "nowhere.yaml", tmp_path)


def test_every_mistake_of_every_provider_is_told_at_once(tmp_path):
    entries = {
        "moon": Entry(kind="moon"),
        "lab": Entry(kind="exec"),
        "local": Entry(kind="local", options={"x": 1}),
    }
    with pytest.raises(ConfigurationError) as error:
        make_suppliers(entries, "f", tmp_path)
    lines = str(error.value).splitlines()
    assert lines[0].startswith(
        "provider 'moon': the provider kind 'moon' is not installed (installed: cloud, exec, local"
    )
    assert lines[1:] == [
        "provider 'lab': options: program: Field required (known: program, timeout, environment)",
        "provider 'local': options: x: Extra inputs are not permitted (known: stop_seconds)",
    ]


def test_words_for_the_agents_of_a_providers_servers_come_through(tmp_path):
    entry = Entry(kind="local", arguments=("--bus", "mqtt://10.77.0.1"))
    (supplier,) = make_suppliers({"here": entry}, "f", tmp_path).values()
    assert supplier.arguments == ("--bus", "mqtt://10.77.0.1")


async def test_our_own_providers_are_found_as_those_of_others_are(tmp_path):
    (supplier,) = make_suppliers({"here": Entry(kind="local")}, "f", tmp_path).values()
    assert supplier.provider.name == "here"
    assert await supplier.provider.list() == ()
    assert list(tmp_path.iterdir()) == []


def test_what_is_registered_is_what_is_installed_and_can_be_loaded():
    registered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][
        ENTRY_POINT_GROUP
    ]
    installed = {one.name: one.value for one in entry_points(group=ENTRY_POINT_GROUP)}
    assert registered.items() <= installed.items()
    for value in registered.values():
        module, _, name = value.partition(":")
        assert callable(getattr(import_module(module), name))


def test_a_package_of_others_brings_its_own_kind(tmp_path, monkeypatch):
    (tmp_path / "moonbase.py").write_text(
        "class Moon:\n"
        "    def __init__(self, setting):\n"
        "        self.name, self.setting = setting.name, setting\n"
    )
    metadata = tmp_path / "moonbase-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: moonbase\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        f"[{ENTRY_POINT_GROUP}]\nmoon = moonbase:Moon\nbroken = moonbase_2:Moon\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    made = make_suppliers(
        {"luna": Entry(kind="moon", scheduler="h:1", options={"a": 1})}, "f", tmp_path / "data"
    )
    setting = made["luna"].provider.setting
    assert (setting.name, setting.fleet, setting.options) == ("luna", "f", {"a": 1})
    assert setting.data == tmp_path / "data/providers/luna"
    assert made["luna"].scheduler == "h:1"
    with pytest.raises(
        ConfigurationError, match="cannot load the provider kind 'broken' .*: No module named 'moonbase_2'"
    ):
        make_suppliers({"x": Entry(kind="broken")}, "f", tmp_path)
