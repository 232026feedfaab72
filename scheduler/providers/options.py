"""Checks the options of a provider, in its configuration or in a pool's ``server``. An error lists all mistakes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from galactica.scheduler.core.model.spec import ServerBody
from galactica.scheduler.providers.port import ProviderRefused

Shape = TypeVar("Shape", bound=BaseModel)


def checked_options(shape: type[Shape], values: Mapping[str, Any], what: str = "options") -> Shape:
    """``values`` as a ``shape``. Raises ProviderRefused; it lists all mistakes. ``what``: names the options."""
    try:
        return shape.model_validate(dict(values))
    except ValidationError as error:
        names = ", ".join(shape.model_fields) or "none"
        raise ProviderRefused(f"{what}: {'; '.join(mistakes_in(error))} (known: {names})") from None


def checked_body(shape: type[Shape], spec: ServerBody) -> Shape:
    """The body of a pool's ``server``. Raises ProviderRefused."""
    return checked_options(shape, body_of(spec), "the pool's server")


def body_of(spec: ServerBody) -> dict[str, Any]:
    """Raises ProviderRefused if it is not a JSON object."""
    try:
        body = json.loads(spec.body_json)
    except (ValueError, RecursionError) as error:
        raise ProviderRefused(f"the pool's server is invalid JSON: {error}") from error
    if not isinstance(body, dict):
        raise ProviderRefused("the pool's server must be a JSON object")
    return body


def mistakes_in(error: ValidationError) -> list[str]:
    """A line for each mistake: where, and what is wrong. Without the values: one may be a secret."""
    return [
        f"{'.'.join(map(str, mistake['loc'])) or 'it'}: {mistake['msg']}"
        for mistake in error.errors(include_url=False)
    ]
