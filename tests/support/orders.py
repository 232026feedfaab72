"""Instructions for an agent: orders of process cells, and the end of one."""

import sys
from typing import Any

from galactica.v1 import cell_pb2, link_pb2

CELL = "web/1.1"
"""What the agent runs unless a test names another one."""


def order(cell_id: str, *command: str, **spec: Any) -> link_pb2.Instruction:
    """An order for a process cell; by default one that sleeps."""
    whole = cell_pb2.Spec(
        runtime=cell_pb2.RUNTIME_KIND_PROCESS,
        command=command or ("sleep", "600"),
        stop=cell_pb2.Stop(signal="SIGTERM", grace_ms=2_000),
        **spec,
    )
    return link_pb2.Instruction(
        order=link_pb2.Order(cell_id=cell_id, digest=f"digest of {cell_id}", spec=whole)
    )


def decommission(cell_id: str) -> link_pb2.Instruction:
    return link_pb2.Instruction(decommission=link_pb2.Decommission(cell_id=cell_id, reason="a test wants it"))


def http_server(answer: str = "HTTP/1.1 200 OK") -> tuple[str, ...]:
    """The command of a cell that answers each GET on $PORT_HTTP so, one connection at a time."""
    program = (
        "import os,socket\n"
        "s=socket.create_server(('127.0.0.1',int(os.environ['PORT_HTTP'])),backlog=64)\n"
        "while True:\n"
        " c,_=s.accept()\n"
        " c.recv(4096)\n"
        f" c.sendall(b'{answer}\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok')\n"
        " c.close()\n"
    )
    return (sys.executable, "-S", "-c", program)
