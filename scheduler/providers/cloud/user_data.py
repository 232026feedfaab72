"""User data for cloud-init that installs and starts an agent: a template with three placeholders.

``${environment}``, ``${begin}`` and ``${install}`` are each replaced by one JSON string, which is a YAML scalar. An
operator's own template (for example for an image with the agent) may leave some of them out.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from galactica.scheduler.providers.port import UserData

DEFAULT_INSTALL = "galactica[docker,enrol]"
"""The argument of pip install on the new server: a name, or the address of a wheel."""
SIZE_LIMIT = 65_536
_PLACE = re.compile(r"\$\{(environment|begin|install)\}")


def render(user_data: UserData, template: Path | None, install: str) -> str:
    """The user data of a new server. Blocks to read the template. Raises OSError."""
    texts = {
        "environment": f"GALACTICA_TOKEN={user_data.token}\n",
        "begin": begin_script(user_data),
        "install": install,
    }
    return _PLACE.sub(lambda place: json.dumps(texts[place[1]], ensure_ascii=False), read_template(template))


def read_template(template: Path | None) -> str:
    """``template`` None: the default template of this package. Raises OSError."""
    path = template or Path(__file__).with_name("cloud-init.yaml")
    with path.open(encoding="utf-8") as file:
        return file.read(SIZE_LIMIT)


def begin_script(user_data: UserData) -> str:
    """A shell script that starts the agent. The ports of cells are published on the server's address towards the
    scheduler."""
    host = user_data.scheduler.rpartition(":")[0].removeprefix("[").removesuffix("]")
    address = f"$(ip -o route get $(getent ahosts {shlex.quote(host)} | awk 'NR == 1 {{print $1}}')"
    address += " | sed -n 's/.* src \\([^ ]*\\).*/\\1/p')"
    arguments = shlex.join(user_data.agent_arguments())
    return (
        "#!/bin/sh\n"
        f'exec /opt/galactica/bin/galactica-agent --data /var/lib/galactica-agent --host "{address}" \\\n'
        f"    {arguments}\n"
    )
