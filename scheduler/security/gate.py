"""Authorises calls on the port of agents and operators, and turns errors into a gRPC status.

TLS admits only holders of the CA's client certificates. ``Gate`` runs before every call: an operator needs the role
in ``OPERATOR_CALLS``, the agents' link is for servers only, and a Galactica call that is in neither table is
refused. Each refusal is recorded. Handlers raise plain exceptions, and the gate translates them into a status.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Never

import grpc
import structlog

from galactica.scheduler.core.model.requests import Asker, AskerKind, JournalRefuses, RecordRefusal, Refused
from galactica.scheduler.core.ports import Mind
from galactica.scheduler.journal.port import JournalCorrupt, JournalError
from galactica.scheduler.security.ca import ClockError
from galactica.scheduler.security.identities import (
    IdentityError,
    OperatorIdentity,
    Role,
    ServerIdentity,
    identity_of,
)

Context = grpc.aio.ServicerContext[Any, Any]
Behaviour = Callable[[Any, Context], Awaitable[Any]]
if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]

OPERATOR_PREFIX = "/galactica.v1.OperatorService/"
LINK_PREFIX = "/galactica.v1.AgentLinkService/"
_OURS = "/galactica."

OPERATOR_CALLS: Mapping[str, Role] = {
    "GetStatus": Role.VIEWER,
    "ListCells": Role.VIEWER,
    "ListServers": Role.VIEWER,
    "ListProviders": Role.VIEWER,
    "WatchEvents": Role.VIEWER,
    "GetCertificate": Role.VIEWER,
    "GetGroup": Role.VIEWER,
    "ReadLogs": Role.VIEWER,
    "GetVersion": Role.VIEWER,
    "PlanGroups": Role.VIEWER,
    "WaitReady": Role.VIEWER,
    "ApplyGroups": Role.DEPLOYER,
    "DeleteGroup": Role.DEPLOYER,
    "CondemnCell": Role.DEPLOYER,
    "OpenShell": Role.DEPLOYER,
    "DrainServer": Role.ADMIN,
    "ReleaseStorm": Role.ADMIN,
    "AdoptCells": Role.ADMIN,
    "CondemnUnknown": Role.ADMIN,
    "Regrow": Role.ADMIN,
    "CreateToken": Role.ADMIN,
    "CreateOperator": Role.ADMIN,
}
"""The role that each call needs. This is the only such table."""

LINK_CALLS = frozenset({"Attach", "RenewCertificate"})

REFUSAL_KEY = "galactica-refusal"
"""Trailing metadata that carries the name of the rule that refused."""

NOW_KEY = "galactica-now"
"""Initial metadata of an operator's call: the scheduler's time, Unix seconds. All times in the answer belong to it. It
may differ from every wall clock, also this machine's."""

DETAILS_BYTES_LIMIT = 5_000
"""A status is sent in headers, and clients accept 8 KiB of headers by default."""

log = structlog.get_logger("scheduler.authorisation")


class InvalidRequest(ValueError):
    """The request itself is wrong. The message lists every problem."""


class Gate(grpc.aio.ServerInterceptor):
    """Authorises each call before its handler runs, and turns what the handler raises into a status.

    Galactica's handlers are coroutines (streams use ``context.read`` and ``context.write``), never generators."""

    def __init__(self, mind: Mind) -> None:
        self._mind = mind

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(_OURS):
            return handler  # every member of the fleet may use health and reflection

        def guard(inner: Behaviour) -> Behaviour:
            async def answer(request: Any, context: Context) -> Any:
                if method.startswith(OPERATOR_PREFIX):
                    await context.send_initial_metadata(((NOW_KEY, f"{self._mind.now():.3f}"),))
                return await inner(request, context)

            async def guarded(request: Any, context: Context) -> Any:
                await self._authorise(method, context)
                return await _translated(answer, request, context, method)

            return guarded

        return _around(handler, guard)

    async def _authorise(self, method: str, context: Context) -> None:
        call = method.rpartition("/")[2]
        try:
            who = identity_of(context.auth_context())
        except IdentityError as error:
            await self._refuse(context, Asker(AskerKind.UNKNOWN), "", call, str(error))
        if isinstance(who, ServerIdentity):
            if method.removeprefix(LINK_PREFIX) in LINK_CALLS:
                return
            message = f"server {who.server_id} may not call {call}: the call needs an operator's certificate"
            await self._refuse(context, who.asker, "server", call, message)
        needed = OPERATOR_CALLS.get(method.removeprefix(OPERATOR_PREFIX))
        if needed is not None and who.role.allows(needed):
            return
        requirement = f"the role {needed}" if needed else "a server's certificate"
        message = f"operator {who.name} has the role {who.role}, but {call} needs {requirement}"
        await self._refuse(context, who.asker, who.role, call, message)

    async def _refuse(self, context: Context, caller: Asker, role: str, call: str, message: str) -> Never:
        log.warning("call_refused", caller=str(caller), call=call, peer=context.peer())
        with suppress(Refused):  # if the journal cannot record it, the log still has it
            await self._mind.ask(RecordRefusal(str(caller), role, call), by=caller)
        await abort(context, grpc.StatusCode.PERMISSION_DENIED, message, "not_authorised")


def operator_of(context: Context) -> OperatorIdentity:
    """The operator who calls. The gate lets nobody else through."""
    who = identity_of(context.auth_context())
    if not isinstance(who, OperatorIdentity):
        raise IdentityError("the caller is not an operator")
    return who


def server_of(context: Context) -> str:
    """The id of the server that calls. The gate lets nobody else through."""
    who = identity_of(context.auth_context())
    if not isinstance(who, ServerIdentity):
        raise IdentityError("the caller is not a server")
    return who.server_id


async def abort(context: Context, code: grpc.StatusCode, message: str, rule: str = "") -> Never:
    """End the call. ``rule``: the name of the rule that refused it, for programs."""
    await context.abort(code, _fitting(message), ((REFUSAL_KEY, rule),) if rule else ())


def _fitting(message: str) -> str:
    """The message, cut to the limit. gRPC percent-encodes everything but printable ASCII: three bytes for each."""
    left = DETAILS_BYTES_LIMIT
    for index, character in enumerate(message):
        left -= 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode())
        if left < 0:
            return message[:index] + " ..."
    return message


async def _translated(inner: Behaviour, request: Any, context: Context, method: str) -> Any:
    """Run the handler, and end the call with a status if it raises."""
    try:
        return await inner(request, context)
    except grpc.aio.AbortError:
        raise
    except InvalidRequest as wrong:
        await abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(wrong), "invalid")
    except ClockError as error:
        await abort(context, grpc.StatusCode.UNAVAILABLE, str(error), "clock")
    except JournalRefuses as refusal:
        await abort(context, grpc.StatusCode.UNAVAILABLE, str(refusal), refusal.rule)
    except Refused as refusal:
        code = grpc.StatusCode.NOT_FOUND if refusal.missing else grpc.StatusCode.FAILED_PRECONDITION
        await abort(context, code, str(refusal), refusal.rule)
    except JournalCorrupt as error:
        await abort(context, grpc.StatusCode.DATA_LOSS, str(error), "journal")
    except JournalError as error:
        await abort(context, grpc.StatusCode.UNAVAILABLE, str(error), "journal")
    except Exception:
        if context.cancelled():
            raise  # the caller left during a write
        log.exception("call_failed", method=method)
        await abort(context, grpc.StatusCode.INTERNAL, "internal error in the scheduler; see its log")


def _around(handler: Handler, wrap: Callable[[Behaviour], Behaviour]) -> Handler:
    """The same handler with its behaviour wrapped."""
    shape = ("stream" if handler.request_streaming else "unary") + (
        "_stream" if handler.response_streaming else "_unary"
    )
    make = getattr(grpc, f"{shape}_rpc_method_handler")
    wrapped: Handler = make(
        wrap(getattr(handler, shape)),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return wrapped
