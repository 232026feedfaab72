"""What an agent costs its host: memory and processor share of real agents, attached with mTLS, with cells to probe.

Both runtimes are watched at the same time, each with an agent of its own.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.bench.fleet import apply, operator_of, ready, start_agent
from tests.bench.table import Row
from tests.support.engine import HELLO_1, configured_host, import_hello_images
from tests.support.fleet import Fleet, a_fleet

CELLS = 50
SETTLE_SECONDS = 10.0
SAMPLES = 12
LIMITS_MIB = {"process": 48, "docker": 56}
SHARE_TARGET = "≤ 0.5 % of a core, flat"
HEALTH = {"http": {"port": "http", "path": "/"}, "every": "1s", "boot_within": "60s"}


class Sample(NamedTuple):
    at: float
    cpu_seconds: float
    rss_mib: float


def run(seconds: float = 60.0) -> list[Row]:
    """``seconds``: how long the agents are watched."""
    import_hello_images(configured_host())
    with tempfile.TemporaryDirectory(prefix="galactica-bench-") as directory, a_fleet() as fleet:
        page = Path(directory)
        page.chmod(0o755)
        (page / "index.html").write_text("hello\n")
        pids = {runtime: start_agent(fleet, runtime, runtime) for runtime in LIMITS_MIB}
        attached = {runtime: _sample(pid) for runtime, pid in pids.items()}
        _apply(fleet, page)
        with operator_of(fleet) as client:
            ready(client, 2 * CELLS)
            time.sleep(SETTLE_SECONDS)
            samples = _watch(pids, seconds)
            assert len(ready(client, 2 * CELLS)) == 2 * CELLS
    rows = []
    for runtime, seen in samples.items():
        rows += _rows(runtime, attached[runtime], seen)
    return rows


def _apply(fleet: Fleet, page: Path) -> None:
    serve = ["busybox", "httpd", "-f", "-p", "127.0.0.1:{port.http}", "-h", str(page)]
    apply(
        fleet,
        name="processes",
        replicas=CELLS,
        runtime="process",
        command=serve,
        ports={"http": "auto"},
        health=HEALTH,
    )
    apply(
        fleet,
        name="containers",
        replicas=CELLS,
        image=HELLO_1,
        command=["httpd", "-f", "-p", "8080"],
        ports={"http": 8080},
        health=HEALTH,
    )


def _watch(pids: dict[str, int], seconds: float) -> dict[str, list[Sample]]:
    """Samples at even distances, the first at once and the last at the end."""
    samples: dict[str, list[Sample]] = {runtime: [] for runtime in pids}
    began = time.monotonic()
    for number in range(SAMPLES + 1):
        time.sleep(max(0.0, began + number * seconds / SAMPLES - time.monotonic()))
        for runtime, pid in pids.items():
            samples[runtime].append(_sample(pid))
    return samples


def _sample(pid: int) -> Sample:
    process = psutil.Process(pid)
    with process.oneshot():
        times = process.cpu_times()
        return Sample(time.monotonic(), times.user + times.system, process.memory_info().rss / 2**20)


def _rows(runtime: str, attached: Sample, samples: list[Sample]) -> list[Row]:
    first, last = samples[0], samples[-1]
    watched = last.at - first.at
    share = (last.cpu_seconds - first.cpu_seconds) / watched
    peak = max(sample.rss_mib for sample in samples)
    return [
        Row(
            f"agent's memory (RSS), {runtime} runtime",
            f"{attached.rss_mib:.1f} MiB attached, {last.rss_mib:.1f} MiB with {CELLS} cells",
            f"≤ {LIMITS_MIB[runtime]} MiB",
            f"{first.rss_mib:.1f} MiB {watched:.0f} s before, at most {peak:.1f} MiB between",
        ),
        Row(
            f"agent's processor share, {runtime} runtime, {CELLS} cells probed by HTTP each second",
            f"{share:.2%} of a core over {watched:.0f} s",
            SHARE_TARGET,
            f"{share / CELLS * 1e6:.0f} µs for each cell and second",
        ),
    ]
