"""Converts an order to a cloud's node and back: names, tags, and the arguments of Libcloud's ``create_node``."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import re
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from libcloud.compute.base import Node, NodeDriver, NodeImage, NodeLocation, NodeSize
from libcloud.compute.providers import get_driver
from pydantic import BaseModel, ConfigDict, Field, field_validator

from galactica.scheduler.core.model.fleet import parse_cell_id
from galactica.scheduler.providers.port import ProviderRefused

FLEET_TAG = "galactica-fleet"
FLEET_ID_TAG = "galactica-fleet-id"
CELL_TAG = "galactica-cell"
NAME_CHARACTERS = 63
USER_DATA_ARGUMENTS = ("ex_userdata", "ex_user_data", "ex_custom_data", "ex_customdata", "cloud_init")
"""The names of this argument in the drivers."""
METADATA_ARGUMENT = "ex_metadata"
METADATA_USER_DATA = "user-data"
"""Where cloud-init looks for user data on clouds that give a node only metadata (GCE)."""
_ONCE_ARGUMENTS = ("ex_clienttoken", "ex_client_token")


class Body(BaseModel):
    """``arguments``: further arguments of the driver's ``create_node``; ``{"id": …}`` stands for one of its objects."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str = Field(min_length=1)
    size: str = Field(min_length=1)
    location: str = ""
    arguments: dict[str, Any] = {}

    @field_validator("arguments")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        ours = {*USER_DATA_ARGUMENTS, *_ONCE_ARGUMENTS, METADATA_ARGUMENT, "ex_mincount", "ex_maxcount"}
        if wrong := sorted(name for name in value if not name.startswith("ex_") or name in ours):
            raise ValueError(f"{', '.join(wrong)}: not allowed; give only the driver's own arguments (ex_…), except"
                             " those for user data, tags and number")  # fmt: skip
        return value


class Names:
    """The names and tags of one fleet's nodes. ``fleet_id`` tells the fleet from another of the same name."""

    def __init__(self, fleet: str, fleet_id: str) -> None:
        self._fleet = fleet
        self._fleet_id = fleet_id
        self._name = re.compile(rf"{re.escape(fleet)}-(?P<group>.+)-(?P<slot>\d+)-(?P<generation>\d+)")

    def name(self, cell: str) -> str:
        """A host name. Raises ProviderRefused."""
        name = f"{self._fleet}-{cell.replace('/', '-').replace('.', '-')}"
        if len(name) > NAME_CHARACTERS:
            raise ProviderRefused(
                f"the node name {name} is too long (limit: {NAME_CHARACTERS} characters): give the pool a shorter name"
            )
        return name

    def tags(self, cell: str) -> dict[str, str]:
        return {FLEET_TAG: self._fleet, FLEET_ID_TAG: self._fleet_id, CELL_TAG: cell}

    def once(self, cell: str) -> str:
        """What the cloud recognises a repeated request for this cell by."""
        return hashlib.sha256(f"{self._fleet_id} {self.name(cell)}".encode()).hexdigest()[:32]

    def _owns(self, tags: Mapping[str, str]) -> bool:
        """A node without the fleet's id was made before nodes had one: there the name decides."""
        return tags.get(FLEET_TAG) == self._fleet and tags.get(FLEET_ID_TAG, self._fleet_id) == self._fleet_id

    def cell_of(self, driver: NodeDriver, node: Node) -> str:
        """The node's cell id; empty if it is not a cell of this fleet. The name counts only if the driver has no tags,
        because foreign nodes may have any name."""
        if METADATA_ARGUMENT in _parameters(driver):
            tags = _tags_of(node)
            cell = tags.get(CELL_TAG, "") if self._owns(tags) else ""
        else:
            match = self._name.fullmatch(str(node.name or ""))
            cell = f"{match['group']}/{match['slot']}.{match['generation']}" if match else ""
        return cell if parse_cell_id(cell) is not None else ""


def driver_class(name: str) -> type[NodeDriver]:
    """Raises ProviderRefused."""
    try:
        driver: type[NodeDriver] = get_driver(name.lower())
    except (AttributeError, ImportError) as error:
        raise ProviderRefused(f"Libcloud has no compute driver '{name}': {error}") from error
    return driver


def create(
    driver: NodeDriver, names: Names, cell: str, body: Body, user_data: str, user_data_argument: str
) -> Node:
    """Create the node; the request is sent once. Raises ProviderRefused and the errors of Libcloud."""
    parameters = _parameters(driver)
    arguments: dict[str, Any] = {
        "name": names.name(cell),
        "image": NodeImage(id=body.image, name=body.image, driver=driver),
        "size": _the(body.size, "size", driver.list_sizes()),
        **{name: _argument(value) for name, value in body.arguments.items()},
    }
    if body.location:
        arguments["location"] = _the(body.location, "location", driver.list_locations())
    if METADATA_ARGUMENT in parameters:
        arguments[METADATA_ARGUMENT] = names.tags(cell)
    for name in _ONCE_ARGUMENTS:
        if name in parameters:
            # With this the cloud itself recognises a repeated request.
            arguments[name] = names.once(cell)
    _add_user_data(arguments, parameters, user_data, user_data_argument)
    _check(arguments, parameters)
    try:
        return driver.create_node(**arguments)
    except (ValueError, TypeError) as error:
        raise ProviderRefused(f"the driver does not accept these arguments: {error}") from error


def _add_user_data(
    arguments: dict[str, Any], parameters: Mapping[str, Any], user_data: str, given_name: str
) -> None:
    name = given_name or next((known for known in USER_DATA_ARGUMENTS if known in parameters), "")
    if name and name != METADATA_ARGUMENT:
        arguments[name] = user_data
    elif METADATA_ARGUMENT in parameters:
        arguments[METADATA_ARGUMENT] |= {METADATA_USER_DATA: user_data}
    else:
        raise ProviderRefused(
            "this Libcloud driver has no known argument for user data, so no agent can be installed on a new node; "
            "use another driver, set the argument's name (user_data_argument), or use an exec provider"
        )


def _check(arguments: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    unknown = sorted(set(arguments) - set(parameters))
    if unknown and not takes_any:
        names = ", ".join(name for name in parameters if name.startswith("ex_"))
        raise ProviderRefused(
            f"the driver does not have the arguments {', '.join(unknown)} (it has: {names})"
        )


def _argument(value: Any) -> Any:
    """If a driver wants an object, such as a network, it usually reads only the object's id."""
    return SimpleNamespace(**value) if isinstance(value, dict) and set(value) == {"id"} else value


def _the(wanted: str, what: str, found: Iterable[NodeSize] | Iterable[NodeLocation]) -> Any:
    """The size or location with that id or name. Raises ProviderRefused."""
    by_name = {str(key): item for item in found for key in (item.name, item.id)}
    if wanted not in by_name:
        near = ", ".join(difflib.get_close_matches(wanted, by_name, n=5)) or ", ".join(sorted(by_name)[:5])
        raise ProviderRefused(f"the cloud has no {what} '{wanted}'; it has for example {near}")
    return by_name[wanted]


def _parameters(driver: NodeDriver) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(driver.create_node).parameters


def _tags_of(node: Node) -> dict[str, str]:
    """The node's tags: from a dictionary, or from GCE's list of keys and values."""
    tags: dict[str, str] = {}
    for place in ("metadata", "tags"):
        value = node.extra.get(place) if isinstance(node.extra, dict) else None
        if isinstance(value, dict) and isinstance(value.get("items"), list):
            value = {item.get("key"): item.get("value") for item in value["items"] if isinstance(item, dict)}
        if isinstance(value, dict):
            tags |= {str(key): str(text) for key, text in value.items()}
    return tags
