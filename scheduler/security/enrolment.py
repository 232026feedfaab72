"""How a server gets its first certificate, and a new one after its old one has expired.

Enrolment has a port of its own, because a new host has no client certificate yet: it proves itself with a join
token. The token's use is recorded durably before a certificate is made, so that no crash can give out two
certificates for one use. Renewal needs no token. Normally it comes over the link, where both sides have valid
certificates; after the certificate has expired it comes here (``renewal`` says who may renew).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Never

import grpc
import structlog

from galactica.scheduler.core.model import requests
from galactica.scheduler.core.model.fleet import SERVER_ID
from galactica.scheduler.core.model.requests import Asker
from galactica.scheduler.security.ca import AuthorityError, CertificateAuthority, ClockError, CsrError
from galactica.scheduler.security.gate import abort
from galactica.scheduler.security.renewal import NotRenewed, server_to_renew
from galactica.scheduler.security.tokens import ParsedToken, TokenError, parse_token
from galactica.v1 import link_pb2, link_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable

    from galactica.scheduler.core.ports import Mind

    Context = grpc.aio.ServicerContext[Any, Any]


_FAILURES_AT_ONCE = 50
_FAILURES_PER_SECOND = 5.0

_log = structlog.get_logger(__name__)


class FailureBudget:
    """A token bucket of failed attempts, shared by all callers: ``at_once``, then ``per_second``.

    Only failures count, so that a thousand hosts with good tokens may come at the same moment. It limits the work
    and the log lines that strangers can cause. The length of the secrets, not this limit, prevents guessing."""

    def __init__(self, at_once: int, per_second: float, now: Callable[[], float]) -> None:
        self._at_once = float(at_once)
        self._per_second = per_second
        self._now = now
        self._left = self._at_once
        self._counted_at = now()

    def seconds_until_open(self) -> float:
        """0 if an attempt is allowed now."""
        self._refill()
        return max(0.0, (1.0 - self._left) / self._per_second)

    def spend(self) -> None:
        """Count a failure. Concurrent attempts may take it below zero."""
        self._refill()
        self._left -= 1.0

    def _refill(self) -> None:
        now = self._now()
        self._left = min(self._at_once, self._left + (now - self._counted_at) * self._per_second)
        self._counted_at = now


class EnrolmentService(link_pb2_grpc.EnrolmentServiceServicer):
    """The gRPC side of enrolment. link.proto describes its answers."""

    def __init__(self, ca: CertificateAuthority, mind: Mind, fleet: str, server_ttl_seconds: float) -> None:
        self._ca = ca
        self._mind = mind
        self._fleet = fleet
        self._server_ttl_seconds = server_ttl_seconds
        self._failures = FailureBudget(_FAILURES_AT_ONCE, _FAILURES_PER_SECOND, mind.now)

    async def Enrol(  # noqa: N802 (the contract's name)
        self, request: link_pb2.EnrolRequest, context: Context
    ) -> link_pb2.EnrolResponse:
        await self._check_failures(context)
        server_id = await self._checked_server_id(request, context)
        token = await self._parsed_token(request, context)
        await self._check_request(request, context)
        await self._spend(token, server_id, context)
        issued = self._ca.issue_server(request.csr_pem, server_id, self._server_ttl_seconds)
        _log.info("server enrolled", server=server_id, token=token.id, expires_at=issued.expires_at)
        return link_pb2.EnrolResponse(
            certificate_pem=issued.certificate_pem,
            ca_pem=self._ca.certificate_pem,
            fleet=self._fleet,
            expires_at=issued.expires_at,
        )

    async def RenewExpired(  # noqa: N802 (the contract's name)
        self, request: link_pb2.RenewExpiredRequest, context: Context
    ) -> link_pb2.RenewExpiredResponse:
        await self._check_failures(context)
        fleet, now = self._mind.fleet(), self._ca.now()
        try:
            server_id = server_to_renew(self._ca, fleet, request.certificate_pem, request.csr_pem, now)
            issued = self._ca.issue_server(request.csr_pem, server_id, self._server_ttl_seconds)
        except NotRenewed as refusal:
            await self._turn_away(refusal.server, "", str(refusal), context, refusal.rule)
        except ClockError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        except AuthorityError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        _log.info("expired certificate renewed", server=server_id, expires_at=issued.expires_at)
        return link_pb2.RenewExpiredResponse(
            certificate_pem=issued.certificate_pem, expires_at=issued.expires_at
        )

    async def _check_failures(self, context: Context) -> None:
        wait_seconds = self._failures.seconds_until_open()
        if wait_seconds > 0:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"too many failed enrolments; try again in {wait_seconds:.1f} s",
            )

    async def _checked_server_id(self, request: link_pb2.EnrolRequest, context: Context) -> str:
        if SERVER_ID.fullmatch(request.server_id) is None:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                "invalid server id: use 1 to 128 letters, digits and - . _ /; "
                "begin and end with a letter or digit",
            )
        return request.server_id

    async def _parsed_token(self, request: link_pb2.EnrolRequest, context: Context) -> ParsedToken:
        try:
            token = parse_token(request.token)
        except TokenError as error:
            await self._turn_away(request.server_id, "", str(error), context)
        if token.ca_digest != self._ca.digest:
            message = "the join token is for a scheduler with another CA; create a token with this scheduler"
            await self._turn_away(request.server_id, token.id, message, context)
        return token

    async def _check_request(self, request: link_pb2.EnrolRequest, context: Context) -> None:
        """Runs before the token is used: a bad request must not cost one of the token's uses."""
        try:
            self._ca.check(request.csr_pem)
        except CsrError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except ClockError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        except AuthorityError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))

    async def _spend(self, token: ParsedToken, server_id: str, context: Context) -> None:
        request = requests.Enrol(token=token.id, secret_sha256=token.secret_sha256, server=server_id)
        try:
            await self._mind.ask(request, by=Asker.server(server_id))
        except requests.JournalRefuses as refusal:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(refusal))
        except requests.Refused as refusal:
            if refusal.rule == "token":
                await self._turn_away(server_id, token.id, str(refusal), context)
            if refusal.rule == "server_exists":
                await context.abort(grpc.StatusCode.ALREADY_EXISTS, str(refusal))
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(refusal))

    async def _turn_away(
        self, server_id: str, token_id: str, message: str, context: Context, rule: str = ""
    ) -> Never:
        self._failures.spend()
        _log.warning(
            "enrolment refused", server=server_id, token=token_id, reason=message, peer=context.peer()
        )
        await abort(context, grpc.StatusCode.UNAUTHENTICATED, message, rule)
