"""From an order to a cloud's node and back: names, tags, and the arguments of Libcloud's ``create_node``."""

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
CELL_TAG = "galactica-cell"
NAME_CHARACTERS = 63
USER_DATA_ARGUMENTS = ("ex_userdata", "ex_user_data", "ex_custom_data", "ex_customdata", "cloud_init")
"""What drivers call it."""
METADATA_ARGUMENT = "ex_metadata"
METADATA_USER_DATA = "user-data"
"""Where cloud-init looks on clouds whose metadata is all that a node is given (GCE)."""
_ONCE_ARGUMENTS = ("ex_clienttoken", "ex_client_token")


class Body(BaseModel):
    """``arguments``: more for the driver's ``create_node``; ``{"id": …}`` stands for an object of the driver's."""

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
            raise ValueError(f"{', '.join(wrong)}: only a driver's own arguments (ex_…) that say nothing of user data,"
                             " tags or number can be given")  # fmt: skip
        return value


class Names:
    """What nodes of one fleet are called."""

    def __init__(self, fleet: str) -> None:
        self._fleet = fleet
        self._name = re.compile(rf"{re.escape(fleet)}-(?P<group>.+)-(?P<slot>\d+)-(?P<generation>\d+)")

    def name(self, cell: str) -> str:
        """A host name. Raises ProviderRefused."""
        name = f"{self._fleet}-{cell.replace('/', '-').replace('.', '-')}"
        if len(name) > NAME_CHARACTERS:
            raise ProviderRefused(
                f"the node's name {name} is longer than {NAME_CHARACTERS} characters; give the pool a shorter name"
            )
        return name

    def tags(self, cell: str) -> dict[str, str]:
        return {FLEET_TAG: self._fleet, CELL_TAG: cell}

    def cell_of(self, driver: NodeDriver, node: Node) -> str:
        """The cell that the node is; empty where it is none of this fleet. A name is believed only where the driver
        knows no tags: somebody else's node may be called anything."""
        if METADATA_ARGUMENT in _parameters(driver):
            tags = _tags_of(node)
            cell = tags.get(CELL_TAG, "") if tags.get(FLEET_TAG) == self._fleet else ""
        else:
            match = self._name.fullmatch(node.name or "")
            cell = f"{match['group']}/{match['slot']}.{match['generation']}" if match else ""
        return cell if parse_cell_id(cell) is not None else ""


def driver_class(name: str) -> type[NodeDriver]:
    """Raises ProviderRefused."""
    try:
        found: type[NodeDriver] = get_driver(name.lower())
    except (AttributeError, ImportError) as error:
        raise ProviderRefused(f"Libcloud has no compute driver '{name}': {error}") from error
    return found


def create(
    driver: NodeDriver, names: Names, cell: str, body: Body, user_data: str, user_data_argument: str
) -> Node:
    """Make the node; the request goes out once. Raises ProviderRefused and whatever Libcloud raises."""
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
            # The cloud itself then takes a request that came twice for one.
            arguments[name] = hashlib.sha256(names.name(cell).encode()).hexdigest()[:32]
    _add_user_data(arguments, parameters, user_data, user_data_argument)
    _check(arguments, parameters)
    try:
        return driver.create_node(**arguments)
    except (ValueError, TypeError) as error:
        raise ProviderRefused(f"the driver does not take these arguments: {error}") from error


def _add_user_data(
    arguments: dict[str, Any], parameters: Mapping[str, Any], user_data: str, given_name: str
) -> None:
    name = given_name or next((one for one in USER_DATA_ARGUMENTS if one in parameters), "")
    if name and name != METADATA_ARGUMENT:
        arguments[name] = user_data
    elif METADATA_ARGUMENT in parameters:
        arguments[METADATA_ARGUMENT] |= {METADATA_USER_DATA: user_data}
    else:
        raise ProviderRefused(
            "this driver of Libcloud gives a new node no user data, so no agent can come up on it; "
            "choose another driver, name its argument (user_data_argument), or use an exec provider"
        )


def _check(arguments: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    unknown = sorted(set(arguments) - set(parameters))
    if unknown and not takes_any:
        known = ", ".join(name for name in parameters if name.startswith("ex_"))
        raise ProviderRefused(f"the driver does not know {', '.join(unknown)} (known: {known})")


def _argument(value: Any) -> Any:
    """Where a driver wants an object, a network say, most of them look at its id alone."""
    return SimpleNamespace(**value) if isinstance(value, dict) and set(value) == {"id"} else value


def _the(wanted: str, what: str, found: Iterable[NodeSize] | Iterable[NodeLocation]) -> Any:
    """The size or location of that id or name. Raises ProviderRefused."""
    by_name = {str(key): one for one in found for key in (one.name, one.id)}
    if wanted not in by_name:
        near = ", ".join(difflib.get_close_matches(wanted, by_name, n=5)) or ", ".join(sorted(by_name)[:5])
        raise ProviderRefused(f"the cloud has no {what} '{wanted}'; it has for instance {near}")
    return by_name[wanted]


def _parameters(driver: NodeDriver) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(driver.create_node).parameters


def _tags_of(node: Node) -> dict[str, str]:
    """Wherever the driver keeps them: a dictionary, or GCE's list of keys and values."""
    tags: dict[str, str] = {}
    for place in ("metadata", "tags"):
        value = node.extra.get(place)
        if isinstance(value, dict) and isinstance(value.get("items"), list):
            value = {item.get("key"): item.get("value") for item in value["items"] if isinstance(item, dict)}
        if isinstance(value, dict):
            tags |= {str(key): str(text) for key, text in value.items()}
    return tags
