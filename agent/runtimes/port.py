"""What runs cells: the port. ``docker`` and ``process`` stand behind it.

A runtime keeps the *order* (the contract's message, whole) beside each cell it makes, in a label or a file, so
that an agent that starts again finds its cells with everything it needs to know about them.

All methods are idempotent by cell id, none blocks the event loop, and each is bounded in time.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from galactica.agent.core.model import Found, Running
from galactica.v1 import cell_pb2, link_pb2

LAST_LINES = 50
LINE_CHARACTERS = 1_000


class RuntimeFailure(Exception):
    """The runtime could not do it; the message is for people and names what to do where that is known."""


class StartFailed(RuntimeFailure):
    """The cell could not be started: no such image, port taken, command not found. Nothing of it is left behind."""


class RuntimeUnavailable(RuntimeFailure):
    """The engine does not answer. Says nothing about the cells."""


@dataclass(frozen=True, slots=True)
class Exited:
    """A cell ended by itself. It still exists, as a corpse, until it is removed."""

    cell_id: str
    autopsy: cell_pb2.Autopsy


@dataclass(frozen=True, slots=True)
class Relisted:
    """The watch was interrupted (an engine went away and came back); this is everything there is now."""

    found: tuple[Found, ...] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class Stirred:
    """Somebody laid hands on a cell: it is worth a comparison now."""

    cell_id: str


@dataclass(frozen=True, slots=True)
class Window:
    """The size of a terminal, in characters."""

    rows: int
    columns: int


class Shell(Protocol):
    """A command that runs for a person. Nothing here raises but ``end``."""

    async def read(self) -> tuple[bytes, bool] | None:
        """The next piece (at most 16 KiB) and whether it is standard error's; None at the end."""

    async def write(self, data: bytes) -> None:
        """Waits until it is taken; dropped where nobody takes it any more."""

    async def end_input(self) -> None: ...

    async def resize(self, window: Window) -> None: ...

    async def end(self) -> int:
        """End what still runs of it: its exit code, 128 + n for signal n. To be called once. Raises
        RuntimeFailure."""


class Progress(Protocol):
    """Called with a line for people while a start takes its time."""

    def __call__(self, text: str, /) -> None: ...


class Runtime(Protocol):
    kind: cell_pb2.RuntimeKind.ValueType

    async def list(self) -> Sequence[Found]:
        """Every cell of this fleet that exists here. Raises RuntimeUnavailable."""

    async def start(self, order: link_pb2.Order, progress: Progress) -> Running:
        """Make and start the cell. Where it runs already, tell of it. Raises StartFailed, RuntimeUnavailable."""

    async def stop(self, cell_id: str, signal: str, grace_seconds: float) -> None:
        """Ask the cell to end, end it after the grace, remove all of it. Fine where there is none.

        Raises RuntimeUnavailable."""

    def watch(self) -> AsyncIterator[Exited | Relisted | Stirred]:
        """Deaths as they happen, without polling. Cells that ``stop`` ended are not told of."""

    async def compare(self, order: link_pb2.Order, runtime_id: str) -> tuple[str, ...]:
        """How the running cell differs, or was seen to differ, from its order: short lines for people, no values of
        the environment. Empty where it is untouched. Raises RuntimeFailure."""

    def logs(self, cell_id: str, tail: int, *, follow: bool) -> AsyncIterator[bytes]:
        """What the cell wrote (stdout and stderr): the last ``tail`` lines, then what comes. Raises RuntimeFailure."""

    async def execute(self, cell_id: str, command: Sequence[str], timeout_seconds: float) -> tuple[int, str]:
        """Run a command inside the cell: exit code and the last line of its output.

        Raises TimeoutError (the command was ended), RuntimeFailure."""

    async def open_shell(
        self, cell_id: str, command: Sequence[str], term: str, window: Window | None
    ) -> Shell:
        """Run a command in the cell for a person: on a terminal of type ``term``, without a window on pipes.
        Raises RuntimeFailure."""

    async def ping(self) -> float | None:
        """Round trip to the engine in seconds; None where there is no engine. Raises RuntimeUnavailable."""

    async def close(self) -> None:
        """Let go of engine and files. Cells live on."""
