"""What mkdocs calls while it builds the site: fills in the generated tables and shows files of the repository.

``<!-- generated: NAME -->`` in a page is replaced by the table of that name. README.md is the start page. Whatever is
wrong is logged as a warning, and a strict build ends with it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

from docs.reference import command_line, links, manifest

ROOT = Path(__file__).parents[2]

TABLES: Mapping[str, Callable[[], str]] = {
    "service": manifest.service,
    "pool": manifest.pool,
    "overview": command_line.overview,
    "common options": command_line.common_options,
    "exit codes": command_line.exit_codes,
    "commands": command_line.commands,
    "agent": command_line.agent,
    "json": command_line.json_output,
}

_MARK = re.compile(r"^<!-- generated: (?P<name>.+) -->$", re.MULTILINE)
_log = logging.getLogger("mkdocs.plugins.galactica")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the start page, and a page for each file of the repository that some page links to."""
    files.append(File.generated(config, links.START, content=(ROOT / links.README).read_text()))
    linked: dict[PurePosixPath, str] = {}
    for file in files.documentation_pages():
        for path in links.repository_paths(file.content_string, _origin(file.src_uri)):
            linked.setdefault(path, file.src_uri)
    for path, page in sorted(linked.items()):
        if links.is_page(path):
            continue
        if not (ROOT / path).is_file():
            _log.warning("%s links to %s, and the repository has no such file", page, path)
            continue
        files.append(_source(path, config))
    return files


def _source(path: PurePosixPath, config: MkDocsConfig) -> File:
    uri, aside = links.page_of(path), InclusionLevel.NOT_IN_NAV
    if path.suffix in links.PICTURES:
        return File.generated(config, uri, abs_src_path=str(ROOT / path), inclusion=aside)
    content = links.source_page(path, (ROOT / path).read_text())
    return File.generated(config, uri, content=content, inclusion=aside)


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills in tables and turns links."""
    del config, files
    uri = page.file.src_uri
    if uri.startswith(f"{links.SOURCES}/"):
        return markdown
    turned = links.rewritten(markdown, _origin(uri), PurePosixPath(uri))
    return _MARK.sub(lambda mark: _table(mark["name"], uri), turned)


def _origin(uri: str) -> PurePosixPath:
    """The folder of the repository that a page's links start from."""
    return PurePosixPath() if uri == links.START else links.PAGES / PurePosixPath(uri).parent


def _table(name: str, page: str) -> str:
    if name not in TABLES:
        _log.warning("%s asks for the table %r; there are %s", page, name, ", ".join(TABLES))
        return ""
    return TABLES[name]()
