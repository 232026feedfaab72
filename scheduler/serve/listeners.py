"""The two gRPC servers: one with mTLS for agents and operators (with health and reflection), one for enrolment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from galactica.scheduler.security.ca import CertificateAuthority
from galactica.v1 import link_pb2, link_pb2_grpc

if TYPE_CHECKING:
    from galactica.scheduler.core.ports import Mind

    Context = grpc.aio.ServicerContext[Any, Any]
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from galactica.scheduler.core.ports import Mind
from galactica.scheduler.link.dispatcher import Dispatcher
from galactica.scheduler.operators.api import OperatorApi
from galactica.scheduler.security.enrolment import EnrolmentService
from galactica.scheduler.security.gate import Gate
from galactica.v1 import operator_pb2, operator_pb2_grpc

_REQUEST_BYTES_LIMIT = 65_536
_CONCURRENT_CALLS_LIMIT = 256
"""Callers of the enrolment port are strangers, so the limits for them are small."""


def link_credentials(
    ca: CertificateAuthority, key_pem: bytes, certificate_pem: bytes
) -> grpc.ServerCredentials:
    """For the port of agents and operators: only holders of a client certificate of the fleet's CA may connect."""
    return grpc.ssl_server_credentials(
        [(key_pem, certificate_pem)], root_certificates=ca.certificate_pem, require_client_auth=True
    )


def enrolment_credentials(
    ca: CertificateAuthority, key_pem: bytes, certificate_pem: bytes
) -> grpc.ServerCredentials:
    """For the enrolment port. The chain includes the CA's certificate, because a new host does not have it yet: the
    host takes it from the handshake and compares it with the digest in its token."""
    return grpc.ssl_server_credentials([(key_pem, certificate_pem + ca.certificate_pem)])


def make_enrolment_server(
    service: EnrolmentService, listen: str, credentials: grpc.ServerCredentials
) -> tuple[grpc.aio.Server, int]:
    """The enrolment server, not started yet, and its port. Raises RuntimeError if it cannot listen."""
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", _REQUEST_BYTES_LIMIT)],
        maximum_concurrent_rpcs=_CONCURRENT_CALLS_LIMIT,
    )
    link_pb2_grpc.add_EnrolmentServiceServicer_to_server(service, server)
    return server, server.add_secure_port(listen, credentials)


RECEIVE_BYTES_LIMIT = 16 * 2**20
SEND_BYTES_LIMIT = 128 * 2**20
"""The list of all cells is one answer; clients accept the same size."""
CALLS_LIMIT = 20_000
"""Each attached agent uses one call."""

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", RECEIVE_BYTES_LIMIT),
    ("grpc.max_send_message_length", SEND_BYTES_LIMIT),
    # Two schedulers must never share a port.
    ("grpc.so_reuseport", 0),
    # These detect a vanished peer within about 10 s, much earlier than TCP.
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
    """The server for agents and operators, not started yet, and its port. Raises RuntimeError if it cannot listen."""
    server = grpc.aio.server(
        interceptors=[Gate(mind)], options=list(_OPTIONS), maximum_concurrent_rpcs=CALLS_LIMIT
    )
    link_pb2_grpc.add_AgentLinkServiceServicer_to_server(dispatcher, server)
    operator_pb2_grpc.add_OperatorServiceServicer_to_server(operators, server)
    services = [
        link_pb2.DESCRIPTOR.services_by_name["AgentLinkService"].full_name,
        operator_pb2.DESCRIPTOR.services_by_name["OperatorService"].full_name,
    ]
    await _add_health(server, services)
    reflection.enable_server_reflection([*services, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    return server, server.add_secure_port(listen, link_credentials(ca, key_pem, certificate_pem))


async def _add_health(server: grpc.aio.Server, services: list[str]) -> None:
    """Every service is SERVING as long as the server answers."""
    servicer = health.aio.HealthServicer()
    for service in services:
        await servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
