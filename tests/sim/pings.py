"""What hosts find when they ping others: what becomes of the agents' testimonies about their neighbours."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from galactica.scheduler.core.sight.observations import Answer, Testimony
from tests.sim.host import Host


@dataclass
class _Found:
    """``since``: by the world's time. ``was_refused``: the newest answer that was one is a refusal."""

    answer: Answer
    since: float
    was_refused: bool


@dataclass
class Pings:
    """Hosts reach each other unless one of them is isolated."""

    isolated: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    """Those of whom somebody got no answer of any kind. Whoever asks may clear it."""
    _found: dict[tuple[str, str], _Found] = field(default_factory=dict)

    def testimony(self, watcher: Host, name: str, host: Host | None, now: float) -> Testimony:
        """``host``: the watched one, if it still is. ``now``: the scheduler's time."""
        world_now = asyncio.get_running_loop().time()
        answer = self._answer(watcher, host)
        before = self._found.get((watcher.name, name))
        if before is None or before.answer is not answer:
            was_refused = before is not None and before.was_refused
            if answer is not Answer.SILENT:
                was_refused = answer is Answer.REFUSED
            before = self._found[watcher.name, name] = _Found(answer, world_now, was_refused)
        if answer is Answer.SILENT:
            self.silent.add(name)
        after_refusal = answer is Answer.SILENT and before.was_refused
        return Testimony(name, answer, now - (world_now - before.since), after_refusal)

    def _answer(self, watcher: Host, host: Host | None) -> Answer:
        if host is None or host.is_silent or {host.name, watcher.name} & self.isolated:
            return Answer.SILENT
        return Answer.REFUSED if host.agent is None else Answer.ANSWERS
