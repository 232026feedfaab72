"""The law on agents that end in order: during the maintenance lease their absence costs their server nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.events import Record
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.model.rules import SILENCE_RULES, Rule


@dataclass
class Absences:
    leases: dict[str, float] = field(default_factory=dict)
    """Server to the end of its maintenance lease."""
    silent: set[str] = field(default_factory=set)
    """Hosts of which a neighbour got no answer of any kind, since their lease began."""

    def note(self, record: Record) -> str:
        """What the record breaks; empty where it breaks nothing."""
        event = record.event
        match event:
            case e.MaintenanceBegan(server=server, until=until):
                self.leases[server] = until
                self.silent.discard(server)
                if until > record.at + Policy().maintenance_limit_seconds:
                    return "a maintenance lease is longer than the limit"
            case e.MaintenanceEnded(server=server):
                self.leases.pop(server, None)
            case e.ServerJoined(server=server) | e.ServerDecommissioned(server=server):
                self.leases.pop(server, None)
            case e.CellOrdered(server=server) if server in self.leases:
                return "a cell was ordered on a server in maintenance"
            case e.ServerCondemned(server=server, rule=rule):
                return self._condemned(server, rule, record.at)
        return ""

    def _condemned(self, server: str, rule: str, at: float) -> str:
        is_excused = at < self.leases.get(server, 0.0)
        if is_excused and rule in SILENCE_RULES | {Rule.LEFT} and server not in self.silent:
            return f"{server} was condemned by {rule} in maintenance, and its host lives"
        return ""
