"""What the agent itself lacks: file descriptors, memory, threads, room on its disk.

Such an error says nothing about the cell for which the agent was at work. It is this server's illness: the vitals tell
it, and nobody blames a cell or its spec for it.
"""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from galactica.agent.seldom import Seldom

if TYPE_CHECKING:
    from collections.abc import Iterator

LACKS = frozenset(
    {
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOBUFS,
        errno.EAGAIN,
        errno.ENOSPC,
        errno.EDQUOT,
    }
)
"""The kernel's words for it. EAGAIN: no more processes or threads."""
_ENGINES = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
"""Not those that a cell's own limits can bring about too."""
NO_THREAD = "can't start new thread"
"""The text of Python's own error for it, which has no number."""
CAUSES = 16
"""How many errors behind an error are looked at."""

log = logging.getLogger(__name__)


def lack_of(error: BaseException) -> str:
    """What the agent lacked, such as EMFILE; empty if the error, and each error behind it, has another reason."""
    for one in _behind(error):
        if isinstance(one, OSError) and one.errno in LACKS:
            return errno.errorcode[one.errno]
        if isinstance(one, MemoryError):
            return errno.errorcode[errno.ENOMEM]
        if isinstance(one, RuntimeError) and NO_THREAD in str(one):
            return errno.errorcode[errno.EAGAIN]
    return ""


def engine_lacks(words: str) -> bool:
    """Whether an engine's words say that its host lacks room or descriptors, whatever was asked of it."""
    told = words.lower()
    return any(os.strerror(number).lower() in told for number in _ENGINES)


def _behind(error: BaseException) -> Iterator[BaseException]:
    """The error and those that it wraps: as its cause, or, as in some libraries, among its arguments; and
    those of a group."""
    waiting: list[object] = [error]
    for _ in range(CAUSES):
        if not waiting:
            return
        one = waiting.pop(0)
        if isinstance(one, BaseException):
            yield one
            waiting += [
                one.__cause__,
                getattr(one, "reason", None),
                *one.args,
                *getattr(one, "exceptions", ()),
            ]


@dataclass(slots=True)
class Lacks:
    """Remembers what the agent lacked since the vitals were taken the last time, and logs each kind once a minute."""

    _newest: str = ""
    _seldom: Seldom = field(default_factory=Seldom)

    def note(self, lack: str, doing: str) -> None:
        self._newest = lack
        if self._seldom.is_time(lack):
            log.warning("this agent lacks what it needs lack=%s doing=%r", lack, doing)

    def note_if(self, error: BaseException, doing: str) -> str:
        """Note what the agent lacked, if that is behind the error. Returns it."""
        lack = lack_of(error)
        if lack:
            self.note(lack, doing)
        return lack

    def take(self) -> str:
        """The newest lack since the last call; empty: none."""
        newest, self._newest = self._newest, ""
        return newest
