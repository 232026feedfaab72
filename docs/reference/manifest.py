"""The tables of the manifest reference, made from the models that read manifests."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from docs.reference.markdown import table
from galactica.scheduler.core.validation.problems import Path
from galactica.scheduler.manifest.notation import Bounds, Without, Written
from galactica.scheduler.manifest.pool_shape import POOL_SECTIONS
from galactica.scheduler.manifest.shape import SERVICE_SECTIONS
from galactica.scheduler.units import format_bytes, format_duration

_COLUMNS = ("key", "type", "default", "bounds", "meaning")


def service() -> str:
    """Every key of a service's manifest."""
    return "\n".join(_sections("service", SERVICE_SECTIONS))


def pool() -> str:
    """Every key of a pool's manifest."""
    return "\n".join(_sections("pool", POOL_SECTIONS))


def _sections(kind: str, sections: dict[Path, type[BaseModel]]) -> Iterator[str]:
    """A heading, a sentence and a table for each mapping."""
    for path, model in sections.items():
        if path:
            yield f"### {_dotted(path)}\n\n{' '.join((inspect.getdoc(model) or '').split())}\n"
        yield (
            table(_COLUMNS, (row(kind, path, name, field) for name, field in model.model_fields.items()))
            + "\n"
        )


def _dotted(path: Path) -> str:
    return ".".join(str(part) for part in path)


def row(kind: str, path: Path, name: str, field: FieldInfo) -> tuple[str, str, str, str, str]:
    """Raises KeyError for a field whose type nobody named, and ValueError for one that nobody described."""
    marks = marks_of(field)
    if not field.description:
        raise ValueError(f"{_dotted((*path, name))} has no description")
    bounds = marks.get(Bounds)
    key = f'<span id="{anchor(kind, path, name)}"></span>`{name}`'
    return key, _type(path, name, field), _default(field, marks), _bounds(bounds), field.description


def anchor(kind: str, path: Path, name: str) -> str:
    """Where the page explains a key: ``service-health-every``."""
    return "-".join([kind, *(str(part) for part in path), name])


def _bounds(bounds: Bounds | None) -> str:
    return f"`{bounds.least}` to `{bounds.most}`" if bounds else ""


def marks_of(field: FieldInfo) -> dict[type, Any]:
    """The last mark of each kind, on the field or inside its Optional."""
    return {type(mark): mark for mark in [*_nested_marks(field.annotation), *field.metadata]}


def _nested_marks(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        yield from _nested_marks(inner)
        yield from marks
    elif type(None) in get_args(annotation):
        for part in get_args(annotation):
            yield from _nested_marks(part)


def _type(path: Path, name: str, field: FieldInfo) -> str:
    if model := model_in(field.annotation):
        return f"[{model.__name__.removesuffix('Shape').lower()}](#{_heading(path, name)})"
    if written := marks_of(field).get(Written):
        return str(written.type)
    parts = get_args(field.annotation)
    inner = {type(mark): mark for part in parts[-1:] for mark in _nested_marks(part)}[Written]
    shape = "mapping, name to {}" if get_origin(field.annotation) is dict else "list of {}s"
    return shape.format(inner.type)


def _heading(path: Path, name: str) -> str:
    """The anchor that the heading of a nested mapping gets."""
    return "".join(str(part) for part in (*path, name)).replace(".", "")


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The nested mapping's model, if the field holds one."""
    if inspect.isclass(annotation) and not get_args(annotation) and issubclass(annotation, BaseModel):
        return annotation
    parts = get_args(annotation)
    inner = parts[:1] if get_origin(annotation) is Annotated else parts if type(None) in parts else ()
    return next((model for part in inner if (model := model_in(part))), None)


def _default(field: FieldInfo, marks: dict[type, Any]) -> str:
    if without := marks.get(Without):
        return str(without.meaning)
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, BaseModel):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    written = marks.get(Written)
    if written and written.type == "duration":
        return f"`{format_duration(value).replace(' ', '')}`"
    if written and written.type == "amount of memory":
        return f"`{format_bytes(value).replace(' ', '')}`"
    return f"`{value}`" if value not in ("", [], {}) else "empty"
