"""What is true of the repository as a whole: its pins, its contract, its weight."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from galactica.v1 import cell_pb2, link_pb2, operator_pb2

ROOT = Path(__file__).parents[2]
FORBIDDEN_VERBS = {"restart", "repair", "fix", "update", "patch", "heal", "resurrect", "upgrade"}


def normal(name):
    """PyPA's normal form of a distribution's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_constraints_pin_exact_versions_and_name_no_address():
    assert [line for line in pins() if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []


def test_every_installed_package_is_pinned():
    """A dependency that was added without ``make constraints`` would be another one on every machine."""
    if Path(sys.prefix) != ROOT / ".venv":
        pytest.skip("not in the environment that `make venv` makes")
    installed = {f"{normal(found.metadata['Name'])}=={found.version}" for found in metadata.distributions()}
    pinned = {f"{normal(name)}=={version}" for name, version in (line.split("==") for line in pins())}
    assert {name for name in installed if not name.startswith("galactica==")} - pinned == set()


def messages(container):
    for message in container:
        yield message
        yield from messages(message.nested_types)


def contract_names():
    """Every name in the contract: services, calls, messages, fields, enumerations and their values."""
    for file in (cell_pb2.DESCRIPTOR, link_pb2.DESCRIPTOR, operator_pb2.DESCRIPTOR):
        for service in file.services_by_name.values():
            yield service.name
            yield from (method.name for method in service.methods)
        for enum in file.enum_types_by_name.values():
            yield enum.name
            yield from (value.name for value in enum.values)
        for message in messages(file.message_types_by_name.values()):
            yield message.name
            yield from (field.name for field in message.fields)
            for enum in message.enum_types:
                yield enum.name
                yield from (value.name for value in enum.values)


def words(name):
    """The words in a CamelCase, snake_case or UPPER_CASE name, in lower case."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


@pytest.mark.parametrize(
    ("name", "has"),
    [
        ("RestartCell", {"restart", "cell"}),
        ("cell_update", {"cell", "update"}),
        ("STATE_PATCH", {"state", "patch"}),
        ("Health", {"health"}),
        ("HTTPFix2", {"http", "fix"}),
    ],
)
def test_words_are_told_apart_in_every_style_of_name(name, has):
    assert words(name) == has


def test_the_contract_has_no_verb_for_changing_what_exists():
    names = set(contract_names())
    assert {"Order", "Decommission", "cell_id", "CELL_STATE_GONE", "AgentLinkService"} <= names
    assert {name for name in names if words(name) & FORBIDDEN_VERBS} == set()


def test_two_verbs_travel_to_an_agent():
    """Besides questions (resync, logs), of which none touches a cell."""
    verbs = {field.name for field in link_pb2.Instruction.DESCRIPTOR.oneofs_by_name["verb"].fields}
    assert verbs == {"order", "decommission", "resync", "fetch_logs", "stop_logs"}


def loaded_by(module):
    """The packages that importing ``module`` loads, by their top-level name; of our own the one below it."""
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    names = done.stdout.split()
    return {name.removeprefix("galactica.").partition(".")[0] for name in names if name != "galactica"}


def test_the_agent_loads_nothing_heavy_before_it_is_asked_to():
    heavy = {
        *("docker", "requests", "urllib3", "cryptography", "OpenSSL", "aiohttp", "msgspec", "pydantic"),
        *("rich", "ruamel", "structlog", "textual", "typer", "scheduler"),
    }
    loaded = loaded_by("galactica.agent.__main__")
    assert "grpc" in loaded
    assert loaded & heavy == set()


def test_a_cell_is_no_more_than_the_standard_library_to_the_core():
    loaded = loaded_by("galactica.scheduler.core.turns")
    assert loaded & {"grpc", "google", "v1", "sqlite3", "structlog", "agent"} == set()


def test_the_folders_are_imported_by_one_name_only():
    """From the repository's root ``import scheduler`` works too, and would load everything a second time."""
    sources = [
        path for top in ("scheduler", "agent", "tests", "deploy") for path in (ROOT / top).rglob("*.py")
    ]
    second_name = re.compile(r"^\s*(from|import) (scheduler|agent)\b", re.MULTILINE)
    assert [str(path) for path in sources if second_name.search(path.read_text())] == []
