"""Pools, providers and storms as texts and tables for people."""

from __future__ import annotations

from collections.abc import Iterator

from galactica.scheduler.cli import people
from galactica.scheduler.cli.output import Shown, Styled
from galactica.scheduler.units import format_duration
from galactica.v1 import operator_pb2

POOL_COLUMNS = ("POOL", "PROVIDER", "REVISION", "SIZE", "READY", "BOOTING", "SICK", "STORM")
PROVIDER_COLUMNS = ("PROVIDER", "SERVERS", "DELETING", "LISTED", "TROUBLE")


def pool_row(group: operator_pb2.GroupStatus, storm: str) -> list[Shown]:
    name, revision, wanted, ready, booting, sick = people.group_row(group)
    return [name, group.provider, revision, wanted, ready, booting, sick, Styled(storm, people.BAD)]


def provider_row(provider: operator_pb2.Provider, now: float) -> list[Shown]:
    listed = "never"
    if provider.HasField("listed_at"):
        listed = f"{format_duration(max(0.0, now - provider.listed_at))} ago"
    counts = [str(provider.servers), str(provider.deleting)]
    return [provider.name, *counts, listed, Styled(provider.trouble, people.WARN)]


def storm_lines(storm: operator_pb2.Storm, now: float) -> Iterator[list[Shown]]:
    """How many servers are silent, since when, how long the storm holds, why, and what to do."""
    since = people.date_text(storm.since)
    left = format_duration(max(0.0, storm.expires_at - now))
    yield [
        Styled(storm.id, people.BAD),
        f": {people.silent(storm)} since {since}, held for {left} more",
    ]
    yield [f"  {storm.reason}"]
    yield [f"  If these servers are really gone: galactica storms release {storm.id}"]
