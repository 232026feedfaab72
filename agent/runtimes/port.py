"""The port of the runtimes, which run cells. ``docker`` and ``process`` implement it.

A runtime stores the whole *order* (the contract's message) with each cell that it creates, in a label or a file. So an
agent finds its cells after its next start, with all facts about them.

All methods are idempotent by cell id. None blocks the event loop, and each has a time limit.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from galactica.agent.core.model import Found, Running
from galactica.agent.starved import lack_of
from galactica.v1 import cell_pb2, link_pb2

LAST_LINES = 50
LINE_CHARACTERS = 1_000


class RuntimeFailure(Exception):
    """The runtime failed; the message is for people and says what to do, if that is known."""


class StartFailed(RuntimeFailure):
    """The cell did not start: no such image, port in use, command not found. Nothing of it is left."""


class RuntimeUnavailable(RuntimeFailure):
    """The engine does not answer. This says nothing about the cells."""


class StartUncertain(RuntimeUnavailable):
    """The cell was created and may run; the engine does not tell whether it does. Another start settles it."""


class NotBegun(RuntimeUnavailable):
    """The agent could not even begin: its threads were all at work, or it lacks something itself. This says nothing
    about the cells."""


def not_begun(error: Exception) -> Exception:
    """What to raise for an error of work that a thread should do: NotBegun if the agent lacks something for it, else
    the error itself."""
    lack = lack_of(error)
    return NotBegun(f"this server's agent lacks what it needs for that: {lack}") if lack else error


@dataclass(frozen=True, slots=True)
class Exited:
    """A cell ended by itself. Its remains exist until it is removed."""

    cell_id: str
    autopsy: cell_pb2.Autopsy


@dataclass(frozen=True, slots=True)
class Relisted:
    """The watch was interrupted (the engine was away); ``found`` has all cells as they are now."""

    found: tuple[Found, ...] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class Stirred:
    """Somebody may have changed a cell: compare it with its spec now."""

    cell_id: str


@dataclass(frozen=True, slots=True)
class Window:
    """The size of a terminal, in characters."""

    rows: int
    columns: int


class Begun(Protocol):
    """Called when a command begins to run in its cell: until then it has waited for the agent."""

    def __call__(self) -> None: ...


def nobody_waits() -> None:
    """For callers that do not ask when it begins."""


def service_of(cell_id: str) -> str:
    """The service of ``web/2.7`` is ``web``."""
    return cell_id.partition("/")[0]


class Shell(Protocol):
    """A command that runs for an operator. Only ``end`` raises errors."""

    async def read(self) -> tuple[bytes, bool] | None:
        """The next piece of output (at most 16 KiB) and whether it is standard error; None at the end."""

    async def write(self, data: bytes) -> None:
        """Wait until the command has taken the input. Drop the input if the command has closed its side."""

    async def end_input(self) -> None: ...

    async def resize(self, window: Window) -> None: ...

    async def end(self) -> int:
        """End the command if it still runs. Returns its exit code; 128 + n for signal n. Call it once. Raises
        RuntimeFailure."""


class Progress(Protocol):
    """Called with a line for people while a start is under way."""

    def __call__(self, text: str, /) -> None: ...


class Runtime(Protocol):
    kind: cell_pb2.RuntimeKind.ValueType

    @property
    def foreign(self) -> int:
        """How many cells of other fleets the newest ``list`` found here. They are never touched."""

    async def list(self) -> Sequence[Found]:
        """All cells of this fleet on this server. A cell that cannot be inspected is listed with a doubt, and
        never hides the others. Raises RuntimeUnavailable."""

    async def living(self) -> Sequence[link_pb2.Order]:
        """The orders of all cells that may be alive. No cell is inspected for it. Raises RuntimeUnavailable."""

    async def start(self, order: link_pb2.Order, progress: Progress) -> Running:
        """Create and start the cell. If it already runs, return it. Raises StartFailed, StartUncertain,
        RuntimeUnavailable."""

    async def stop(self, cell_id: str, signal: str, grace_seconds: float) -> None:
        """Ask the cell to end, kill it after the grace, and remove it. Does nothing if there is no such cell.

        Raises RuntimeUnavailable."""

    def watch(self) -> AsyncIterator[Exited | Relisted | Stirred]:
        """Deaths as they happen, without polling; not those of cells that ``stop`` ended."""

    async def compare(self, order: link_pb2.Order, runtime_id: str) -> tuple[str, ...]:
        """How the running cell differs from its order, or has differed before: short lines for people, without values
        of the environment. Empty: untouched. Raises RuntimeFailure."""

    def logs(self, cell_id: str, tail: int, *, follow: bool) -> AsyncIterator[bytes]:
        """The cell's output (stdout and stderr): the last ``tail`` lines, then new output. Raises RuntimeFailure."""

    async def execute(
        self, cell_id: str, command: Sequence[str], timeout_seconds: float, begun: Begun = nobody_waits
    ) -> tuple[int, str]:
        """Run a command inside the cell. Returns its exit code and the last line of its output. The timeout counts
        from the moment at which ``begun`` is called.

        Raises TimeoutError (the command was killed), RuntimeFailure; RuntimeUnavailable: no such command ran."""

    async def open_shell(
        self, cell_id: str, command: Sequence[str], term: str, window: Window | None
    ) -> Shell:
        """Run a command in the cell for an operator: on a terminal of type ``term``, or on pipes if ``window`` is None.
        Raises RuntimeFailure."""

    async def ping(self) -> float | None:
        """Round trip to the engine in seconds; None if the runtime has no engine. Raises RuntimeUnavailable."""

    async def close(self) -> None:
        """Disconnect from the engine and close files. Cells live on."""
