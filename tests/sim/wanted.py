"""What a simulated fleet is wanted to be."""

from __future__ import annotations

from msgspec.structs import replace

from galactica.scheduler.core.model.spec import (
    Group,
    GroupKind,
    HealthSpec,
    RuntimeKind,
    ServerBody,
    Spec,
    Stop,
    TcpProbe,
)


def service(name: str, replicas: int, command: str, *, exclusive: bool = False) -> Group:
    health = HealthSpec(probe=TcpProbe("http"), sick_after=3, boot_within_seconds=10.0)
    spec = Spec(runtime=RuntimeKind.PROCESS, command=("serve", command), ports={"http": 0}, health=health)
    if exclusive:
        spec = replace(spec, exclusive=True, stop=Stop(grace_seconds=2.0))
    return Group(GroupKind.SERVICE, name, replicas, spec)


def pool(size: int, body: str) -> Group:
    health = HealthSpec(boot_within_seconds=20.0)
    spec = Spec(runtime=RuntimeKind.SERVER, server=ServerBody("local", f'{{"body":"{body}"}}'), health=health)
    return Group(GroupKind.POOL, "rack", size, spec)
