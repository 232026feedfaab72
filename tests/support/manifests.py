"""Small manifests, and what is said about wrong ones."""

from __future__ import annotations

import textwrap

import pytest

from galactica.scheduler.manifest.loading import ManifestErrors, parse

SMALL = "kind: service\nname: web\ncommand: [serve]\n"


def mistakes(text: str, filename: str = "web.yaml") -> list[str]:
    with pytest.raises(ManifestErrors) as caught:
        parse(textwrap.dedent(text), filename)
    return str(caught.value).splitlines()
