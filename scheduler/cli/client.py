"""The connection to the scheduler: one mTLS channel, calls with deadlines, and readable messages for all failures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from galactica.scheduler.settings.context import FLEET_VARIABLE, Context, context_path, read_context
from galactica.scheduler.settings.errors import CommandFailed, ExitCode
from galactica.scheduler.settings.options import parse_address

if TYPE_CHECKING:
    import grpc

    from galactica.v1.operator_pb2_grpc import OperatorServiceStub

SCHEDULER_NAME = "scheduler.galactica"
"""The name in every scheduler's certificate, independent of its address."""
REFUSAL_KEY = "galactica-refusal"
"""Trailing metadata of a refusal: the rule that refuses. A lost connection has no such metadata."""
NOW_KEY = "galactica-now"
"""Initial metadata of an answer: the scheduler's time."""

ANSWER_SECONDS = 10.0
"""For calls that the scheduler answers from memory."""
LONG_ANSWER_SECONDS = 60.0
"""For calls whose time grows with their size: plans, applies, long lists."""
MESSAGE_BYTES_LIMIT = 128 * 2**20

_Response = TypeVar("_Response")

_CERTIFICATE_REJECTED = "ssl_error_ssl"
"""Part of the library's message about a peer whose certificate it rejects. The message has no such part if the peer
just disappears during the handshake, for example a killed scheduler."""


class DeadlinePassed(CommandFailed):
    """The scheduler is reachable but did not answer in time."""


class UnknownCall(CommandFailed):
    """The scheduler is of an older version."""


class Client:
    """A connection. ``stub`` contains the calls; ``ask`` and ``stream`` make them.

    ``now``: the scheduler's time when it gave the newest answer. Ages and waits count from it: the times in an answer
    are the scheduler's too, and this machine's clock may say something else. Schedulers of 0.1 do not tell it."""

    def __init__(
        self, channel: grpc.Channel, stub: OperatorServiceStub, context: Context, address: str
    ) -> None:
        self.stub = stub
        self.context = context
        self.address = address
        self.now = time.time()
        self._was_ready = False
        self._channel = channel
        channel.subscribe(self._note, try_to_connect=True)

    def close(self) -> None:
        """Stop watching the channel. The channel itself ends with the program: a library thread watches it for
        ``_note``, and closing it would make that thread print a traceback."""
        self._channel.unsubscribe(self._note)

    def _note(self, connectivity: grpc.ChannelConnectivity) -> None:
        self._was_ready = self._was_ready or connectivity.name == "READY"

    def ask(
        self,
        call: grpc.UnaryUnaryMultiCallable[Any, _Response],
        request: object,
        timeout_seconds: float = ANSWER_SECONDS,
    ) -> _Response:
        """Make a unary call. Raises CommandFailed."""
        import grpc

        try:
            answer, told = call.with_call(request, timeout=timeout_seconds)
        except grpc.RpcError as error:
            raise self._failed(error, timeout_seconds) from error
        self._note_time(told)
        return answer

    def _note_time(self, call: grpc.Call) -> None:
        told = dict(call.initial_metadata() or ()).get(NOW_KEY)
        self.now = time.time() if told is None else float(told)

    def ask_while(
        self,
        call: grpc.UnaryUnaryMultiCallable[Any, _Response],
        request: object,
        timeout_seconds: float,
        meanwhile: Callable[[], None],
        every_seconds: float,
    ) -> _Response:
        """Make a unary call, and do something meanwhile now and then. Raises CommandFailed, or what that raises."""
        import grpc

        answer = call.future(request, timeout=timeout_seconds)
        try:
            while True:
                try:
                    return answer.result(timeout=every_seconds)
                except grpc.FutureTimeoutError:
                    meanwhile()
        except grpc.RpcError as error:
            raise self._failed(error, timeout_seconds) from error
        finally:
            answer.cancel()

    def stream(
        self, call: Callable[..., Any], request: object, timeout_seconds: float | None = None
    ) -> Iterator[Any]:
        """The answers of a streaming call as they arrive. Raises CommandFailed."""
        import grpc

        answers = call(request, timeout=timeout_seconds)
        try:
            for answer in answers:
                self._note_time(answers)
                yield answer
        except grpc.RpcError as error:
            raise self._failed(error, timeout_seconds or 0.0) from error
        finally:
            answers.cancel()

    def _failed(self, error: grpc.RpcError, timeout_seconds: float) -> CommandFailed:
        import grpc

        assert isinstance(error, grpc.Call)  # noqa: S101 - always true for an error raised by a call
        code, details = error.code(), error.details() or ""
        refused = any(key == REFUSAL_KEY for key, _ in error.trailing_metadata() or ())
        if code is grpc.StatusCode.UNAVAILABLE and not refused:
            return self._no_connection(details)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            if not self._was_ready:
                return self._no_connection("no answer")
            return DeadlinePassed(
                f"the scheduler at {self.address} did not answer within {timeout_seconds:g} s",
                hint="It may be busy. Try again, and check its log.",
            )
        return _REFUSALS.get(code.name, _failure)(details or code.name)

    def _no_connection(self, details: str) -> CommandFailed:
        if problem := _certificate_problem(self.context):
            return CommandFailed(
                f"the scheduler at {self.address} does not accept the certificate of {self._who}: {problem}",
                ExitCode.UNAUTHORISED,
                "Ask an admin for a new context file: galactica operator create",
            )
        if _CERTIFICATE_REJECTED in details.lower():
            return CommandFailed(
                f"the server at {self.address} is not the scheduler of fleet {self.context.fleet}: "
                "its certificate is not from this fleet's CA",
                ExitCode.UNAUTHORISED,
                f"Check the address. The context file {context_path()} is for {self._who}. If the fleet was "
                "created again, ask an admin for a new context file: galactica operator create",
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
            "Is it running? Start one here: galactica up. Is it on another machine? Use --scheduler HOST:PORT",
        )

    @property
    def _who(self) -> str:
        return f"{self.context.operator} of fleet {self.context.fleet}"


@contextmanager
def connect(scheduler: str | None) -> Iterator[Client]:
    """A client of the scheduler of the current context or of the one that GALACTICA_FLEET names, or of the one at
    ``scheduler`` (HOST:PORT). Raises CommandFailed."""
    # Otherwise the library prints its own log lines between our tables.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    context = read_context(context_path(), os.environ.get(FLEET_VARIABLE, ""))
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


def _certificate_problem(context: Context) -> str:
    """Why every scheduler must reject the context's certificate; empty if it looks valid.

    Called only after a failure: a scheduler that rejects a certificate just closes the connection, and reading
    certificates needs a heavy library."""
    from datetime import UTC, datetime

    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    try:
        certificate = x509.load_pem_x509_certificate(context.cert_pem.encode())
        authority = x509.load_pem_x509_certificate(context.ca_pem.encode())
        certificate.verify_directly_issued_by(authority)
    except InvalidSignature:
        return "the certificate in the context file is not from the fleet's CA"
    except (ValueError, TypeError):
        return "the certificate in the context file is not from the fleet's CA, or is damaged"
    now = datetime.now(UTC)
    if certificate.not_valid_after_utc <= now:
        return f"the certificate expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if certificate.not_valid_before_utc > now:
        return f"the certificate is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
    return ""


def _short(details: str) -> str:
    """The last part of the library's message, without addresses and repetitions."""
    return details.split("\n", 1)[0].rsplit(": ", 1)[-1][:160] or "no answer"


def _failure(details: str) -> CommandFailed:
    return CommandFailed(f"the call failed in the scheduler: {details}", hint="Check the scheduler's log.")


def _refusal(details: str) -> CommandFailed:
    return CommandFailed(details)


def _wrong(details: str) -> CommandFailed:
    return CommandFailed(details, ExitCode.USAGE)


def _unauthorised(details: str) -> CommandFailed:
    return CommandFailed(
        details,
        ExitCode.UNAUTHORISED,
        "See your role: galactica context show. An admin can give you another role: galactica operator create",
    )


def _unknown_call(details: str) -> CommandFailed:
    return UnknownCall(
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
