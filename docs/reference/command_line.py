"""The tables of the command line reference, made from the programs' own parsers and from what prints their JSON."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Any

import typer.main
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from docs.reference.markdown import code, escaped, table
from galactica.agent.settings import parser
from galactica.scheduler.cli.app import build
from galactica.scheduler.settings.errors import EXIT_CODES
from galactica.scheduler.views import shapes
from galactica.v1 import operator_pb2

_SHAPES: tuple[tuple[str, Callable[[Any], Any], type[Message]], ...] = (
    ("status", shapes.status, operator_pb2.GetStatusResponse),
    ("cells", lambda one: [shapes.cell(one)], operator_pb2.Cell),
    ("servers", lambda one: [shapes.server(one)], operator_pb2.Server),
    ("pools", lambda one: [shapes.pool(one, "text")], operator_pb2.GroupStatus),
    ("providers", lambda one: [shapes.provider(one)], operator_pb2.Provider),
    ("storms", lambda one: [shapes.storm(one)], operator_pb2.Storm),
    ("why", shapes.certificate, operator_pb2.GetCertificateResponse),
    ("plan", shapes.plan, operator_pb2.PlanGroupsResponse),
    ("token create", shapes.token, operator_pb2.CreateTokenResponse),
    ("events", shapes.event, operator_pb2.Event),
)
"""Command, what makes its JSON, and the message that it is made from."""


_COMMON = ("--scheduler", "--output")
"""Options that mean the same wherever they occur: explained once."""


def overview() -> str:
    """A table of all commands."""
    rows = ((f"[`{name}`](#{_anchor(name)})", escaped(_first_sentence(command))) for name, command in _all())
    return table(("command", "does"), rows)


def common_options() -> str:
    """What many commands take."""
    options = {
        option.opts[0]: option
        for _, command in _all()
        for option in command.params
        if option.opts[0] in _COMMON
    }
    return _options(options[name] for name in _COMMON)


def commands() -> str:
    """A section for each command."""
    return "\n".join(_command(name, command) for name, command in _all())


def exit_codes() -> str:
    """What each exit code of galactica means."""
    return _exit_codes(EXIT_CODES)


def agent() -> str:
    """Options and exit codes of galactica-agent."""
    command = parser()
    rows = (_agent_option(action) for action in command._actions if action.dest not in ("help", "version"))  # noqa: SLF001 - argparse offers no other list of them
    options = table(("option", "value", "default", "meaning"), rows)
    codes = _exit_codes((command.epilog or "").replace(", ", "; "))
    return f"{escaped(command.description or '')}\n\n{options}\n\n{codes}"


def json_output() -> str:
    """For each command that prints JSON, all of its keys."""
    return "\n".join(
        f"### {name} -o json\n\n```json\n{json.dumps(shape(_filled(message())), indent=2)}\n```\n"
        for name, shape, message in _SHAPES
    )


def _all() -> list[tuple[str, Any]]:
    return list(commands_of(typer.main.get_command(build())))


def commands_of(command: Any, name: str = "galactica") -> Iterator[tuple[str, Any]]:
    """Everything that can be typed, with its words; a group itself only where it does something."""
    below = getattr(command, "commands", None)
    if below is None or getattr(command, "invoke_without_command", False):
        yield name, command
    for word, child in (below or {}).items():
        yield from commands_of(child, f"{name} {word}")


def _anchor(name: str) -> str:
    return name.replace(" ", "-")


def _about(command: Any) -> str:
    """Its help, without what typer adds."""
    return inspect.cleandoc(command.help or command.callback.__doc__ or "")


def _first_sentence(command: Any) -> str:
    return _about(command).split(". ")[0].split("\n")[0].rstrip(".")


def _exit_codes(text: str) -> str:
    """A table out of ``Exit codes: 0 done; 1 refused or failed.``"""
    entries = text.partition(": ")[2].rstrip(".").split("; ")
    return table(("code", "means"), (entry.split(" ", 1) for entry in entries)) + "\n"


def _command(name: str, command: Any) -> str:
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [parameter for parameter in shown if not _is_option(parameter)]
    options = [parameter for parameter in shown if _is_option(parameter)]
    words = [name, *(["[OPTIONS]"] if options else []), *(_metavar(argument) for argument in arguments)]
    parts = [f"### {name}\n", f"```text\n{' '.join(words)}\n```\n", f"{escaped(_about(command))}\n"]
    if arguments:
        rows = ((code(_metavar(one)), escaped(_help(one))) for one in arguments)
        parts.append(table(("argument", "meaning"), rows) + "\n")
    own = [option for option in options if option.opts[0] not in _COMMON]
    if own:
        parts.append(_options(own) + "\n")
    if common := [code(one) for option in options if option.opts[0] in _COMMON for one in option.opts]:
        parts.append(f"[Common options](#common-options): {', '.join(common)}.\n")
    return "\n".join(parts)


def _options(options: Iterable[Any]) -> str:
    return table(("option", "value", "default", "meaning"), map(_option, options))


def _is_option(parameter: Any) -> bool:
    return bool(parameter.opts[0].startswith("-"))


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _help(parameter: Any) -> str:
    return str(parameter.help or "")


def _option(option: Any) -> tuple[str, str, str, str]:
    names = ", ".join(code(name) for name in option.opts)
    meaning = escaped(_help(option))
    if option.envvar:
        meaning += f" Variable: {code(option.envvar)}."
    if option.multiple and "repeatable" not in meaning:
        meaning += " May be repeated."
    return names, _value(option), _default(option), meaning


def _value(option: Any) -> str:
    if option.is_flag:
        return ""
    if option.metavar:
        return code(option.metavar)
    if choices := getattr(option.type, "choices", ()):
        return ", ".join(code(str(choice)) for choice in choices)
    least, most = getattr(option.type, "min", None), getattr(option.type, "max", None)
    kind = {"integer": "whole number", "integer range": "whole number", "text": "text"}.get(
        option.type.name, "value"
    )
    return kind + ("" if least is None else f" from {least:,}") + ("" if most is None else f" to {most:,}")


def _default(option: Any) -> str:
    if option.required:
        return "required"
    value = option.default.value if isinstance(option.default, Enum) else option.default
    return "" if option.is_flag or value is None or value in ("", [], ()) else code(str(value))


def _agent_option(action: argparse.Action) -> tuple[str, str, str, str]:
    names = ", ".join(code(name) for name in action.option_strings)
    choices = ", ".join(code(str(choice)) for choice in action.choices or ())
    value = "" if action.nargs == 0 else choices or code(str(action.metavar or action.dest.upper()))
    usual = action.default if action.default not in (None, "", [], False) else ""
    return names, value, "required" if action.required else code(str(usual)), escaped(action.help or "")


def _filled(message: Message) -> Any:
    """With something in each field, so that no key is missing."""
    for field in message.DESCRIPTOR.fields:
        target = getattr(message, field.name)
        if field.message_type and field.message_type.GetOptions().map_entry:
            target["name"] = "text"
        elif field.message_type:
            _filled(target.add() if field.is_repeated else target)
        elif field.is_repeated:
            target.append(_something(field))
        else:
            setattr(message, field.name, _something(field))
    return message


def _something(field: Any) -> object:
    """A value of a field's kind. ``field``: its descriptor, of which protobuf has two implementations."""
    kinds = {
        FieldDescriptor.CPPTYPE_STRING: "text",
        FieldDescriptor.CPPTYPE_BOOL: True,
        FieldDescriptor.CPPTYPE_DOUBLE: 0.5,
        FieldDescriptor.CPPTYPE_FLOAT: 0.5,
    }
    return kinds.get(field.cpp_type, 1)
