"""The port of agents and operators: one mTLS server with both contracts, gRPC health and reflection."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from galactica.scheduler.authorisation import Gate
from galactica.scheduler.ca import CertificateAuthority
from galactica.scheduler.dispatcher import Dispatcher
from galactica.scheduler.enrolment import link_credentials
from galactica.scheduler.operator_api import OperatorApi
from galactica.scheduler.ports import Mind
from galactica.v1 import link_pb2, link_pb2_grpc, operator_pb2, operator_pb2_grpc

RECEIVE_BYTES_LIMIT = 16 * 2**20
SEND_BYTES_LIMIT = 128 * 2**20
"""A list of all cells is one answer; clients take as much."""
CALLS_LIMIT = 20_000
"""Each attached agent is one call."""

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", RECEIVE_BYTES_LIMIT),
    ("grpc.max_send_message_length", SEND_BYTES_LIMIT),
    # Two schedulers must never share a port.
    ("grpc.so_reuseport", 0),
    # A peer that vanished without a word is noticed in about 10 s, long before TCP would.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Agents and long watches ping too.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 4_000),
)


async def make_server(
    mind: Mind,
    ca: CertificateAuthority,
    dispatcher: Dispatcher,
    operators: OperatorApi,
    listen: str,
    key_pem: bytes,
    certificate_pem: bytes,
) -> tuple[grpc.aio.Server, int]:
    """A server that is not started yet, and its port. Raises RuntimeError where it cannot listen."""
    server = grpc.aio.server(
        interceptors=[Gate(mind)], options=list(_OPTIONS), maximum_concurrent_rpcs=CALLS_LIMIT
    )
    link_pb2_grpc.add_AgentLinkServiceServicer_to_server(dispatcher, server)
    operator_pb2_grpc.add_OperatorServiceServicer_to_server(operators, server)
    ours = [
        link_pb2.DESCRIPTOR.services_by_name["AgentLinkService"].full_name,
        operator_pb2.DESCRIPTOR.services_by_name["OperatorService"].full_name,
    ]
    await _add_health(server, ours)
    reflection.enable_server_reflection([*ours, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    return server, server.add_secure_port(listen, link_credentials(ca, key_pem, certificate_pem))


async def _add_health(server: grpc.aio.Server, services: list[str]) -> None:
    """What answers at all serves: there is no state in between."""
    servicer = health.aio.HealthServicer()
    for service in services:
        await servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
