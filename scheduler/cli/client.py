"""The way to the scheduler: one mTLS channel, calls with deadlines, and every failure told in people's words."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from galactica.scheduler.settings.context import Context, context_path, read_context
from galactica.scheduler.settings.errors import CommandFailed, ExitCode
from galactica.scheduler.settings.options import parse_address

if TYPE_CHECKING:
    import grpc

    from galactica.v1.operator_pb2_grpc import OperatorServiceStub

SCHEDULER_NAME = "scheduler.galactica"
"""The name in every scheduler's certificate, whatever address it is dialled by."""
REFUSAL_KEY = "galactica-refusal"
"""Trailing metadata of a refusal: the rule that refuses. A lost connection has none."""

ANSWER_SECONDS = 10.0
"""For what the scheduler answers from memory."""
LONG_ANSWER_SECONDS = 60.0
"""For what takes as long as it is large: plans, applies, long lists."""
MESSAGE_BYTES_LIMIT = 128 * 2**20

_Response = TypeVar("_Response")

_NOT_BELIEVED = "ssl_error_ssl"
"""In the library's account of a peer that it does not believe. A peer that just goes away in the middle of the
handshake, as a scheduler that is killed does, has no such error."""


class DeadlinePassed(CommandFailed):
    """A scheduler that is there did not answer in time."""


class Client:
    """A connection. ``stub`` has the calls; ``ask`` and ``stream`` make them."""

    def __init__(
        self, channel: grpc.Channel, stub: OperatorServiceStub, context: Context, address: str
    ) -> None:
        self.stub = stub
        self.context = context
        self.address = address
        self._was_ready = False
        self._channel = channel
        channel.subscribe(self._note, try_to_connect=True)

    def close(self) -> None:
        """The channel itself ends with the program: the library's thread that looks at it for ``_note`` would print a
        traceback where it is closed under its eyes."""
        self._channel.unsubscribe(self._note)

    def _note(self, connectivity: grpc.ChannelConnectivity) -> None:
        self._was_ready = self._was_ready or connectivity.name == "READY"

    def ask(
        self, call: Callable[..., _Response], request: object, timeout_seconds: float = ANSWER_SECONDS
    ) -> _Response:
        """One question, one answer. Raises CommandFailed."""
        import grpc

        try:
            return call(request, timeout=timeout_seconds)
        except grpc.RpcError as error:
            raise self._failed(error, timeout_seconds) from error

    def stream(
        self, call: Callable[..., Any], request: object, timeout_seconds: float | None = None
    ) -> Iterator[Any]:
        """The answers of a streaming call as they come. Raises CommandFailed."""
        import grpc

        answers = call(request, timeout=timeout_seconds)
        try:
            yield from answers
        except grpc.RpcError as error:
            raise self._failed(error, timeout_seconds or 0.0) from error
        finally:
            answers.cancel()

    def _failed(self, error: grpc.RpcError, timeout_seconds: float) -> CommandFailed:
        import grpc

        assert isinstance(error, grpc.Call)  # noqa: S101 - what grpc raises from a call always is
        code, details = error.code(), error.details() or ""
        refused = any(key == REFUSAL_KEY for key, _ in error.trailing_metadata() or ())
        if code is grpc.StatusCode.UNAVAILABLE and not refused:
            return self._no_connection(details)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            if not self._was_ready:
                return self._no_connection("no answer")
            return DeadlinePassed(
                f"the scheduler at {self.address} did not answer within {timeout_seconds:g} s",
                hint="It may be busy; try again, and look at its log.",
            )
        return _REFUSALS.get(code.name, _failure)(details or code.name)

    def _no_connection(self, details: str) -> CommandFailed:
        if trouble := _trouble_with(self.context):
            return CommandFailed(
                f"the scheduler at {self.address} does not let {self._who} in: {trouble}",
                ExitCode.UNAUTHORISED,
                "Ask an admin for a new context file: galactica operator create",
            )
        if _NOT_BELIEVED in details.lower():
            return CommandFailed(
                f"what answers at {self.address} is not the scheduler of fleet {self.context.fleet} "
                "(its certificate is not from this fleet's CA)",
                ExitCode.UNAUTHORISED,
                f"Is the address right? The context file {context_path()} is for {self._who}; if the fleet was made "
                "anew, ask an admin for a new one: galactica operator create",
            )
        if self._was_ready:
            return CommandFailed(
                f"the connection to the scheduler at {self.address} was lost",
                ExitCode.UNREACHABLE,
                "Is it running? Try again: galactica status",
            )
        return CommandFailed(
            f"the scheduler at {self.address} is not reachable ({_short(details)})",
            ExitCode.UNREACHABLE,
            "Is it running? Start it here: galactica up. Is it elsewhere? --scheduler HOST:PORT",
        )

    @property
    def _who(self) -> str:
        return f"{self.context.operator} of fleet {self.context.fleet}"


@contextmanager
def connect(scheduler: str | None) -> Iterator[Client]:
    """A client of the context's scheduler, or of the one at ``scheduler`` (HOST:PORT). Raises CommandFailed."""
    # The library's own log lines would be printed over our tables.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    context = read_context(context_path())
    address = _address(scheduler or context.scheduler)
    import grpc

    from galactica.v1.operator_pb2_grpc import OperatorServiceStub

    options: list[tuple[str, str | int]] = [
        ("grpc.ssl_target_name_override", SCHEDULER_NAME),
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_LIMIT),
        ("grpc.max_send_message_length", MESSAGE_BYTES_LIMIT),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]
    credentials = grpc.ssl_channel_credentials(
        root_certificates=context.ca_pem.encode(),
        private_key=context.key_pem.encode(),
        certificate_chain=context.cert_pem.encode(),
    )
    channel = grpc.secure_channel(address, credentials, options)
    client = Client(channel, OperatorServiceStub(channel), context, address)
    try:
        yield client
    finally:
        client.close()


def _address(text: str) -> str:
    try:
        return str(parse_address(text))
    except ValueError as error:
        raise CommandFailed(str(error), ExitCode.USAGE) from error


def _trouble_with(context: Context) -> str:
    """Why no scheduler can let these credentials in; empty where they look well.

    Asked only after a failure: a scheduler that turns a certificate away just closes the connection, and reading
    certificates needs a heavy library."""
    from datetime import UTC, datetime

    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    try:
        certificate = x509.load_pem_x509_certificate(context.cert_pem.encode())
        authority = x509.load_pem_x509_certificate(context.ca_pem.encode())
        certificate.verify_directly_issued_by(authority)
    except InvalidSignature:
        return "the context file's certificate is not from its fleet's CA"
    except (ValueError, TypeError):
        return "the context file's certificate is not from its fleet's CA, or is damaged"
    now = datetime.now(UTC)
    if certificate.not_valid_after_utc <= now:
        return f"the certificate ended {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if certificate.not_valid_before_utc > now:
        return f"the certificate holds from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on"
    return ""


def _short(details: str) -> str:
    """The last part of the library's account, without addresses and repetitions."""
    return details.split("\n", 1)[0].rsplit(": ", 1)[-1][:160] or "no answer"


def _failure(details: str) -> CommandFailed:
    return CommandFailed(f"the scheduler could not do it: {details}", hint="Look at the scheduler's log.")


def _refusal(details: str) -> CommandFailed:
    return CommandFailed(details)


def _wrong(details: str) -> CommandFailed:
    return CommandFailed(details, ExitCode.USAGE)


def _unauthorised(details: str) -> CommandFailed:
    return CommandFailed(
        details,
        ExitCode.UNAUTHORISED,
        "Who you are: galactica context show. An admin can give you another role: galactica operator create",
    )


def _unknown_call(details: str) -> CommandFailed:
    return CommandFailed(
        f"the scheduler does not know this call: {details}", hint="Compare the versions: galactica version"
    )


_REFUSALS: dict[str, Callable[[str], CommandFailed]] = {
    "UNAUTHENTICATED": _unauthorised,
    "PERMISSION_DENIED": _unauthorised,
    "INVALID_ARGUMENT": _wrong,
    "FAILED_PRECONDITION": _refusal,
    "NOT_FOUND": _refusal,
    "ALREADY_EXISTS": _refusal,
    "RESOURCE_EXHAUSTED": _refusal,
    "UNAVAILABLE": _refusal,
    "ABORTED": _refusal,
    "UNIMPLEMENTED": _unknown_call,
}
