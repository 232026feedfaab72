"""The documentation: its tables name everything that the program has, its examples are accepted, and its links lead
somewhere."""

import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path, PurePosixPath

import pytest
import typer.main
from pydantic import BaseModel

from docs.reference import command_line, hooks, links, manifest
from galactica.agent.settings import parser
from galactica.scheduler.cli.app import build
from galactica.scheduler.core.sight.vitals import AILMENT_RULES
from galactica.scheduler.manifest.loading import ManifestErrors, parse
from galactica.scheduler.manifest.notation import Bounds
from galactica.scheduler.manifest.pool_shape import POOL_SECTIONS
from galactica.scheduler.manifest.shape import SERVICE_SECTIONS
from galactica.scheduler.settings.errors import ExitCode
from galactica.scheduler.units import parse_duration, parse_memory
from tests.bench.table import BEGIN, END, Row, write_into

ROOT = Path(__file__).parents[2]
SECTIONS = {"service": SERVICE_SECTIONS, "pool": POOL_SECTIONS}
NESTED = re.compile(r"^### (.+)$", re.MULTILINE)


def tables_by_heading(markdown):
    """Each heading's text up to the next heading; what comes first belongs to the empty heading."""
    parts = NESTED.split("### \n" + markdown if not markdown.startswith("### ") else markdown)
    first, *rest = parts
    return {"": first, **dict(zip(rest[::2], rest[1::2], strict=True))}


@cache
def texts():
    """Every text for people in the repository, by its path from the root."""
    found = [
        *ROOT.glob("*.md"),
        *(path for top in ("docs", "deploy", "tests") for path in (ROOT / top).rglob("*.md")),
    ]
    return {PurePosixPath(path.relative_to(ROOT)): path.read_text() for path in sorted(found)}


# --- the manifest's reference


def every_key():
    for kind, sections in SECTIONS.items():
        for path, model in sections.items():
            for name in model.model_fields:
                yield kind, ".".join(path), name


@pytest.mark.parametrize(("kind", "section", "name"), list(every_key()))
def test_every_key_of_a_manifest_is_explained_in_its_section(kind, section, name):
    markdown = {"service": manifest.service, "pool": manifest.pool}[kind]()
    text = markdown.split("\n### ")[0] if not section else tables_by_heading(markdown)[section]
    row = next(line for line in text.splitlines() if f"`{name}` |" in line)
    *_, meaning, _ = row.split(" | ") if row.endswith(" | ") else (*row.removesuffix(" |").split(" | "), "")
    assert len(meaning) > 10


def test_sections_are_all_the_mappings_that_a_manifest_has():
    """A mapping that is missing from the table of sections would be missing from the reference too."""

    def mappings(model, path):
        yield path
        for name, field in model.model_fields.items():
            inner = manifest.model_in(field.annotation)
            if inner:
                yield from mappings(inner, (*path, name))

    for sections in SECTIONS.values():
        assert set(mappings(sections[()], ())) == set(sections)


def test_a_key_without_a_description_ends_the_build():
    class Silent(BaseModel):
        key: str = ""

    with pytest.raises(ValueError, match="key has no description"):
        manifest.row("service", (), "key", Silent.model_fields["key"])


@pytest.mark.parametrize(
    ("says", "kind", "section", "name"),
    [
        ("| `true` or `false` | `false` |", "service", "", "exclusive"),
        ("| duration | `1s` | `10ms` to `1h` |", "service", "health", "every"),
        ("| name of a port | required |", "service", "health.grpc", "port"),
        ("| list of texts | required |", "service", "health.exec", "command"),
        ("| `server` or `none` | `server` |", "service", "placement", "spread"),
        ("| [per](#replaceper) | no limit |", "pool", "replace", "per"),
        ("| duration | `5m` | `100ms` to `1d` |", "pool", "", "boot_within"),
    ],
)
def test_a_row_says_type_default_and_bounds(says, kind, section, name):
    markdown = {"service": manifest.service, "pool": manifest.pool}[kind]()
    text = markdown.split("\n### ")[0] if not section else tables_by_heading(markdown)[section]
    assert says in next(line for line in text.splitlines() if f"`{name}` |" in line)


def bounded():
    for kind, sections in SECTIONS.items():
        for path, model in sections.items():
            for name, field in model.model_fields.items():
                if bounds := manifest.marks_of(field).get(Bounds):
                    yield pytest.param(kind, (*path, name), bounds, id=".".join((kind, *path, name)))


def beside(text, step):
    """The value that a manifest can just tell from ``text``, above (1) or below (-1) it."""
    if text[-1] == "B":
        return f"{parse_memory(text) + step}B"
    if text[-1] in "smhd":
        return f"{round(parse_duration(text) * 1_000) + step}ms"
    if "." in text or text == "1024":
        return f"{float(text) + step / 1_000:.3f}"
    return str(int(text) + step)


def manifest_with(kind, path, value):
    """The smallest one in which a key has that value."""
    base = {
        "service": {"kind": "service", "name": "web", "command": "[sleep, '1']"},
        "pool": {"kind": "pool", "name": "rack", "provider": "local", "cut_off_after": "7d"},
    }[kind]
    *sections, name = path
    inner = f"{name}: {value}"
    if path[0] == "health":
        inner += ", exec: {command: [true]}"
    if path[-2:] == ("per", "window"):
        inner += ", count: 1"
    if path == ("replace", "surge"):
        inner += ", unavailable: 1"
    if path == ("cut_off_after",):
        base["lease"] = "1s"
    for section in reversed(sections):
        inner = f"{section}: {{{inner}}}"
    lines = [f"{key}: {text}" for key, text in base.items() if key != path[0]]
    return "\n".join([*lines, inner])


@pytest.mark.parametrize(("kind", "path", "bounds"), list(bounded()))
def test_the_bounds_in_the_reference_are_those_that_hold(kind, path, bounds):
    for value in (bounds.least, bounds.most):
        parse(manifest_with(kind, path, value), "manifest")
    for value in (beside(bounds.least, -1), beside(bounds.most, 1)):
        if not value.startswith("-"):
            with pytest.raises(ManifestErrors, match=re.escape(path[-1])):
                parse(manifest_with(kind, path, value), "manifest")


def examples():
    for path, text in texts().items():
        for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)):
            if block.startswith("kind:"):
                yield pytest.param(block, id=f"{path}-{number}")


@pytest.mark.parametrize("example", list(examples()))
def test_every_manifest_that_a_page_shows_is_accepted(example):
    assert len(parse(example, "example")) == 1


# --- the command line's reference


def every_command():
    return list(command_line.commands_of(typer.main.get_command(build())))


@pytest.mark.parametrize(("name", "command"), every_command(), ids=[name for name, _ in every_command()])
def test_every_command_is_explained_with_its_options(name, command):
    text = tables_by_heading(command_line.commands())[name]
    assert f"[`{name}`](#{name.replace(' ', '-')})" in command_line.overview()
    assert [parameter.name for parameter in command.params if not parameter.help] == []
    for parameter in command.params:
        for word in (
            parameter.opts
            if parameter.opts[0].startswith("-")
            else [parameter.metavar or parameter.name.upper()]
        ):
            assert f"`{word}`".replace("|", "\\|") in text
    first = command.help.split(". ")[0].split("\n")[0]
    assert first[:20] in text


def test_what_the_app_has_at_its_top_is_what_the_reference_walks():
    """By another way than the reference's own."""
    top = {command.name for command in build().registered_commands}
    groups = {group.name for group in build().registered_groups}
    assert {name.split()[1] for name, _ in every_command()} == top | groups


def test_common_options_are_explained_once():
    text = command_line.common_options()
    assert "GALACTICA_SCHEDULER" in text
    assert "`table`, `json`" in text


def test_every_exit_code_is_on_the_page():
    rows = command_line.exit_codes()
    assert {int(found) for found in re.findall(r"^\| (\d+) \|", rows, re.MULTILINE)} == {
        int(code) for code in ExitCode
    }


def test_every_option_of_the_agent_is_on_the_page():
    text = command_line.agent()
    for line in parser().format_usage().split():
        if option := re.match(r"\[?(--[a-z-]+)", line):
            assert option[1] == "--version" or f"`{option[1]}`" in text
    assert "| 3 | cannot reach the scheduler to enrol |" in text


def test_json_keys_that_scripts_read_are_on_the_page():
    text = command_line.json_output()
    for key in (
        "runtime_id",
        "replaced_by",
        "last_beat_at",
        "engine_latency_ms",
        "next_look_at",
        "expires_at",
    ):
        assert f'"{key}"' in text
    assert "null" not in text


def test_every_rule_on_vitals_is_explained():
    page = (ROOT / "docs" / "servers.md").read_text()
    assert [rule for rule in AILMENT_RULES if f"| `{rule}` |" not in page] == []


# --- links, marks and paths


@pytest.mark.parametrize("path", [pytest.param(path, id=str(path)) for path in texts()])
def test_every_link_of_every_text_leads_to_a_file_of_the_repository(path):
    """mkdocs checks the links and anchors between pages; this is for those who read in the repository."""
    found = list(links.repository_paths(texts()[path], path.parent))
    assert [str(one) for one in found if not (ROOT / one).is_file()] == []


@pytest.mark.parametrize("path", [pytest.param(path, id=str(path)) for path in texts()])
def test_paths_that_a_text_names_exist(path):
    named = re.findall(r"`((?:scheduler|agent|tests|deploy|proto|docs|src)/[\w./-]*)`", texts()[path])
    assert [one for one in named if not (ROOT / one).exists()] == []


def test_links_are_turned_towards_the_site():
    text = "[a](../deploy/bus/mosquitto.conf) ![b](../deploy/demo.svg) [c](tour.md#end) [d](#here) [e](https://x.example)"
    assert links.rewritten(text, PurePosixPath("docs"), PurePosixPath("bus.md")) == (
        "[a](source/deploy/bus/mosquitto.conf.md) ![b](source/deploy/demo.svg) [c](tour.md#end) [d](#here) "
        "[e](https://x.example)"
    )
    inner = links.rewritten(
        "[a](../../README.md) [b](../bus.md)",
        PurePosixPath("docs/reference"),
        PurePosixPath("reference/cli.md"),
    )
    assert inner == "[a](../index.md) [b](../bus.md)"


def test_links_in_code_are_left_alone():
    text = "```text\n[a](../deploy/none)\n```\n"
    assert links.rewritten(text, PurePosixPath("docs"), PurePosixPath("bus.md")) == text
    assert list(links.repository_paths(text, PurePosixPath("docs"))) == []


def test_every_generated_table_is_on_a_page_and_every_page_asks_for_one_that_there_is():
    asked = [
        name
        for text in texts().values()
        for name in re.findall(r"^<!-- generated: (.+) -->$", text, re.MULTILINE)
    ]
    assert sorted(asked) == sorted(hooks.TABLES)


def test_the_numbers_are_written_into_their_page(tmp_path):
    page = tmp_path / "numbers.md"
    page.write_text((ROOT / "docs" / "numbers.md").read_text())
    assert write_into(page, [Row("a thing", "1 ms")])
    head, _, rest = page.read_text().partition(BEGIN)
    assert head.startswith("# Numbers")
    assert "| a thing | 1 ms |" in rest.partition(END)[0]


def test_make_docs_ends_with_an_error_at_broken_links_and_the_site_fetches_nothing_from_elsewhere(tmp_path):
    for name in ("docs", "deploy", ".ci"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("Makefile", "README.md", "LICENSE", "mkdocs.yml", "pyproject.toml", "constraints.txt"):
        shutil.copy2(ROOT / name, tmp_path)
    tour = tmp_path / "docs" / "tour.md"
    broken = (
        "[page](none.md) [place](concepts.md#none) [file](../deploy/none.py)\n\n<!-- generated: none -->\n"
    )
    tour.write_text(f"{tour.read_text()}\n{broken}")
    # The environment is lent as it is: make may not think it old and make it anew, under the feet of other tests.
    make = ["make", "--old-file=venv", f"BIN={Path(sys.executable).parent}", "docs"]
    done = subprocess.run(make, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    complaints = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    for what in ("'none.md'", "'#none'", "deploy/none.py", "table 'none'"):
        assert any(what in line for line in complaints), done.stderr
    assert not [line for line in complaints if "tour.md" not in line]
    site = tmp_path / "site"
    keys = (site / "reference" / "manifest" / "index.html").read_text()
    wanted = [
        manifest.anchor(kind, tuple(filter(None, path.split("."))), name) for kind, path, name in every_key()
    ]
    assert [one for one in wanted if f'id="{one}"' not in keys] == []
    commands = (site / "reference" / "cli" / "index.html").read_text()
    assert [
        name for name, _ in every_command() if f'<h3 id="{name.replace(" ", "-")}">' not in commands
    ] == []
    for page in (keys, commands):
        ids = re.findall(r'\bid="([^"]+)"', page.partition("<article")[2].partition("</article")[0])
        assert sorted(ids) == sorted(set(ids))
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    fetched = re.compile(r"""<(?:link|script|img|iframe)\b[^>]*(?:href|src)=["']?(?:https?:)?//""")
    assert [str(page) for page in pages if fetched.search(page.read_text())] == []


def test_the_start_page_is_one_screen():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 80
