"""Telling agents and providers: at once, again when nothing shows that it was heard, and not in between."""

from __future__ import annotations

from galactica.scheduler.commands import Command, ProviderCommand
from galactica.scheduler.draft import Draft
from galactica.scheduler.model import Key


def send_when_due(draft: Draft, key: Key, command: Command) -> None:
    """Never into a closed session: what is wanted of an agent is derived anew when it attaches."""
    seen = draft.sight.servers.get(command.server)
    if seen is None or not seen.is_open:
        return
    told_at = draft.was_told(command.server, command.cell, type(command).__name__)
    if told_at is None or draft.now >= told_at + draft.policy.resend_seconds:
        draft.command(command)
        told_at = draft.now
    draft.look(key, told_at + draft.policy.resend_seconds)


def tell_provider_when_due(draft: Draft, key: Key, command: ProviderCommand) -> None:
    told_at = draft.provider_was_told(command.provider, command.cell, type(command).__name__)
    if told_at is None or draft.now >= told_at + draft.policy.provider_resend_seconds:
        draft.command_provider(command)
        told_at = draft.now
    draft.look(key, told_at + draft.policy.provider_resend_seconds)
