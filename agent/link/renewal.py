"""Renews an expired certificate, so that an agent can reconnect after a long outage without a person's help.

The link accepts only valid certificates. So the renewal uses the enrolment port, which asks for no certificate. The
expired certificate names this server, the stored request (CSR) proves that it has the key, and the CA that was pinned
at the enrolment verifies the other side. This needs only grpc, so the daemon does it itself, and its cells keep
running.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import grpc

from galactica.agent.link.identity import Identity, IdentityError, channel_options, store_renewed
from galactica.v1 import link_pb2, link_pb2_grpc

if TYPE_CHECKING:
    from pathlib import Path

ANSWER_SECONDS = 10.0
LATEST_SECONDS = 30 * 86_400.0
"""So long after its end the scheduler renews a certificate."""
REFUSAL_KEY = "galactica-refusal"
TOO_OLD = "too_old"


class RenewalRefusedError(Exception):
    """The scheduler refuses to renew this server's certificate; the message says why and what to do."""


class NotRenewedError(Exception):
    """The renewal failed this time; a later attempt may succeed."""


async def renew_expired(enrolment: str, directory: Path, identity: Identity) -> Identity:
    """Renew at ``enrolment`` ("HOST:PORT") and store the certificate in the identity's ``directory``.

    Raises RenewalRefusedError, NotRenewedError."""
    try:
        answer = await _ask(enrolment, identity)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
            raise NotRenewedError(f"{error.code().name}: {error.details()}") from error
        if _is_too_old(error) and not identity.has_expired(time.time() - LATEST_SECONDS):
            reason = (
                f"{error.details()}; but by this server's clock it ended later, so one of the clocks is wrong"
            )
            raise NotRenewedError(reason) from error
        raise RenewalRefusedError(
            f"the scheduler at {enrolment} refuses to renew this server's certificate: {error.details()}"
        ) from error
    try:
        return await asyncio.to_thread(store_renewed, directory, answer.certificate_pem, answer.expires_at)
    except (IdentityError, OSError) as error:
        raise NotRenewedError(f"cannot store the renewed certificate: {error}") from error


def _is_too_old(error: grpc.aio.AioRpcError) -> bool:
    """Whether only the scheduler's clock speaks against the certificate. That clock may be wrong for a while."""
    return (REFUSAL_KEY, TOO_OLD) in [(key, value) for key, value in error.trailing_metadata() or ()]


async def _ask(enrolment: str, identity: Identity) -> link_pb2.RenewExpiredResponse:
    request = link_pb2.RenewExpiredRequest(certificate_pem=identity.certificate_pem, csr_pem=identity.csr_pem)
    credentials = grpc.ssl_channel_credentials(root_certificates=identity.ca_pem)
    options = [*channel_options(), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(enrolment, credentials, options=options) as channel:
        stub: link_pb2_grpc.EnrolmentServiceAsyncStub = link_pb2_grpc.EnrolmentServiceStub(channel)
        return await stub.RenewExpired(request, timeout=ANSWER_SECONDS)
