"""What several end-to-end tests share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Galactica's wheel and those of all that its services need: what packages and images are made from."""
    directory = tmp_path_factory.mktemp("wheelhouse")
    subprocess.run([str(ROOT / "deploy" / "wheelhouse"), sys.executable, str(directory)], check=True)
    return directory
