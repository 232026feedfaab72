"""Hosts whose address changes, and hosts whose agents end in order: what their neighbours and the scheduler make of it."""

from __future__ import annotations

import pytest

from deploy.lab.process import run
from tests.support.lab import Lab, split
from tests.support.processes import pids
