"""The record in a process cell's folder: with it the next agent recognises the cell and takes it over.

The file is written completely and then renamed, so there is always an old or a new one. It is not synced to the disk:
it must outlive the agent, but not a crash of the machine, which ends the cell too.
"""

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from galactica.agent.files import replace_file
from galactica.agent.runtimes.process.table import Process
from galactica.v1 import cell_pb2, link_pb2

FORMAT = 1


class CorruptRecordError(Exception):
    """The file is not a valid record; the message says why."""


@dataclass(frozen=True, slots=True)
class Record:
    """``keeper``: the parent that never reaps ``main``, the cell's first process. ``reaper``: the keeper's parent,
    which inherits what the cell leaves behind; None: an agent without reapers made it. ``started_at``: Unix seconds.

    ``autopsy``: set when the cell's death has been examined; its processes are gone then.
    """

    order: link_pb2.Order
    boot_id: str
    keeper: Process
    main: Process
    ports: dict[str, int]
    groups: tuple[Path, ...]
    started_at: float
    autopsy: cell_pb2.Autopsy | None = None
    reaper: Process | None = None

    @property
    def holders(self) -> tuple[Process, ...]:
        """Its processes that are the agent's own, the lowest first."""
        return (self.keeper, self.reaper) if self.reaper else (self.keeper,)


def write(path: Path, record: Record) -> None:
    """Raises OSError."""
    content = {
        "format": FORMAT,
        "cell_id": record.order.cell_id,
        "order": base64.b64encode(record.order.SerializeToString()).decode(),
        "boot_id": record.boot_id,
        "keeper": [record.keeper.pid, record.keeper.start_ticks],
        "reaper": record.reaper and [record.reaper.pid, record.reaper.start_ticks],
        "main": [record.main.pid, record.main.start_ticks],
        "ports": record.ports,
        "groups": [str(group) for group in record.groups],
        "started_at": record.started_at,
        "autopsy": record.autopsy and base64.b64encode(record.autopsy.SerializeToString()).decode(),
    }
    replace_file(path, json.dumps(content).encode())


def read(path: Path) -> Record:
    """Raises FileNotFoundError, CorruptRecordError."""
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise CorruptRecordError(
                f"unknown format {content['format']!r}; this agent reads format {FORMAT}"
            )
        autopsy, reaper = content["autopsy"], content.get("reaper")
        return Record(
            order=link_pb2.Order.FromString(base64.b64decode(content["order"])),
            boot_id=str(content["boot_id"]),
            keeper=_process(content["keeper"]),
            main=_process(content["main"]),
            ports={str(name): int(number) for name, number in content["ports"].items()},
            groups=tuple(Path(group) for group in content["groups"]),
            started_at=float(content["started_at"]),
            autopsy=autopsy and cell_pb2.Autopsy.FromString(base64.b64decode(autopsy)),
            reaper=reaper and _process(reaper),
        )
    except (ValueError, KeyError, TypeError, AttributeError, DecodeError) as error:
        raise CorruptRecordError(f"{type(error).__name__}: {error}") from error


def _process(content: list[int]) -> Process:
    pid, start_ticks = content
    return Process(int(pid), int(start_ticks))
