"""One scheduler: owns its journal, CA, controller, providers and ports, from opening to closing.

data/journal.db   the journal, and the lock that keeps a second scheduler out
data/ca/          the CA's key and certificate (mode 0600)
data/agent/       the local agent's data, only with ``up``
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import socket
from pathlib import Path

import grpc
import structlog
from msgspec import Struct

from galactica import __version__
from galactica.scheduler.controller import Controller, load
from galactica.scheduler.core.genome import nothing_wanted
from galactica.scheduler.core.model.fleet import Fleet
from galactica.scheduler.core.model.requests import Asker, AskerKind, EnrolOperator, Refused
from galactica.scheduler.core.turns import Start
from galactica.scheduler.journal.port import Journal, JournalError
from galactica.scheduler.journal.sqlite import SqliteJournal
from galactica.scheduler.link.dispatcher import Dispatcher
from galactica.scheduler.operators.api import OperatorApi
from galactica.scheduler.providers.configuration import ConfigurationError, make_suppliers, read_providers
from galactica.scheduler.providers.provisioning import Provisioner
from galactica.scheduler.providers.runner import ProviderRunner
from galactica.scheduler.security.ca import (
    AUTHORITY_FILE,
    SERVER_TTL_SECONDS,
    AuthorityError,
    CertificateAuthority,
    ClockError,
    new_key_and_csr,
)
from galactica.scheduler.security.enrolment import EnrolmentService
from galactica.scheduler.security.identities import Role
from galactica.scheduler.serve.clock import SteadyClock
from galactica.scheduler.serve.listeners import enrolment_credentials, make_enrolment_server, make_server
from galactica.scheduler.settings.broker import BusOptions
from galactica.scheduler.settings.context import Context, Kept, keep_context, kept_before
from galactica.scheduler.settings.errors import CommandFailed, ExitCode
from galactica.scheduler.settings.options import Address

ADMIN = "admin"
ADMIN_TTL_SECONDS = 365 * 86_400.0
"""The lifetime of the certificate in the admin's context. Each start makes a new one."""
GRACE_SECONDS = 1.0
START_BYTES = 8
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104

log = structlog.get_logger("scheduler.serve")


class Setup(Struct, frozen=True):
    """The settings of one scheduler."""

    data: Path
    context: Path
    fleet: str
    listen: Address
    enrol_listen: Address
    bus: BusOptions | None = None
    providers: Path | None = None
    regrow: bool = False
    """All but the CA is lost: take what the fleet wants from its agents."""


class Scheduler:
    """Owns journal, CA, controller and ports of one scheduler. Call ``open``, then ``begin`` while the controller
    runs, then ``end``, then ``close``. ``address`` and ``enrol_address``: HOST:PORT for clients on this machine.
    ``has_old_authority``: the CA was there before."""

    def __init__(
        self, setup: Setup, journal: Journal, ca: CertificateAuthority, *, has_old_authority: bool
    ) -> None:
        self._setup = setup
        self._journal = journal
        self.ca = ca
        fleet = load(journal)
        if setup.regrow:
            check_empty(fleet, setup.data)
        self.has_old_authority = has_old_authority
        self.has_new_journal = not journal.head
        version = __version__
        # The fleet's epoch may be above the journal's own: a journal from a backup claims more than one at once.
        epoch = max(journal.claim_epoch(), fleet.epoch + 1)
        clock = SteadyClock(fleet.at)
        start = Start(epoch, version, secrets.token_hex(START_BYTES), setup.regrow)
        self.controller = Controller(journal, fleet, clock, start)
        self.dispatcher = Dispatcher(self.controller, ca, fleet=setup.fleet, epoch=epoch, start=start.id)
        self.providers: ProviderRunner
        self.provisioner: Provisioner
        self._version = version
        self._servers: list[grpc.aio.Server] = []
        self.address = ""
        self.enrol_address = ""
        self.kept: Kept
        """Where ``begin`` has put the admin's context."""

    @classmethod
    async def open(cls, setup: Setup) -> Scheduler:
        """Make all checks before anything outside can reach the scheduler. Raises CommandFailed."""
        if setup.regrow:
            check_authority(setup.data)
        journal = open_journal(setup.data)
        try:
            is_old = has_authority(setup.data)
            ca = CertificateAuthority.open_or_create(setup.data / "ca", setup.fleet)
            scheduler = cls(setup, journal, ca, has_old_authority=is_old)
            await scheduler._bind()
        except (AuthorityError, ClockError) as error:
            await journal.close()
            raise CommandFailed(str(error)) from error
        except JournalError as error:
            await journal.close()
            raise CommandFailed(str(error)) from error
        except BaseException:
            await journal.close()
            raise
        return scheduler

    async def _bind(self) -> None:
        setup = self._setup
        for address in (setup.listen, setup.enrol_listen):
            check_free(address)
        key, certificate = self.ca.issue_scheduler(_hosts(setup.listen.host, setup.enrol_listen.host))
        enrolment = EnrolmentService(self.ca, self.controller, setup.fleet, SERVER_TTL_SECONDS)
        enrol_server, enrol_port = make_enrolment_server(
            enrolment, str(setup.enrol_listen), enrolment_credentials(self.ca, key, certificate)
        )
        self._servers = [enrol_server]
        api = OperatorApi(
            self.controller,
            self._journal,
            self.dispatcher,
            self.ca,
            fleet=setup.fleet,
            version=self._version,
            advertised=self._advertised,
            providers=lambda: self.providers.names,
            genomes=self.dispatcher.genomes,
        )
        server, port = await make_server(
            self.controller, self.ca, self.dispatcher, api, str(setup.listen), key, certificate
        )
        self._servers.append(server)
        self.address = _near(setup.listen, port)
        self.enrol_address = _near(setup.enrol_listen, enrol_port)
        self._connect_providers()

    def _connect_providers(self) -> None:
        """Raises CommandFailed if the providers file is invalid."""
        setup = self._setup
        try:
            entries = read_providers(setup.providers, setup.data)
            suppliers = make_suppliers(entries, setup.fleet, setup.data, self.ca.fleet_id)
        except ConfigurationError as error:
            raise CommandFailed(str(error), ExitCode.USAGE) from error
        self.providers = ProviderRunner(
            suppliers,
            self.controller,
            fleet=setup.fleet,
            scheduler=self.address,
            enrolment=self.enrol_address,
        )
        self.provisioner = Provisioner(self.controller, self.providers, self.ca.digest)

    def _advertised(self) -> str:
        """The address for other machines: this machine's name if it listens on a wildcard address."""
        host = self._setup.listen.host
        port = int(self.address.rpartition(":")[2])
        return str(Address(socket.gethostname() if host in _WILDCARDS else host, port))

    async def begin(self) -> None:
        """Open the ports and keep the admin's context. The controller must run already. Raises CommandFailed."""
        await self._keep_admin_context()
        for server in self._servers:
            await server.start()
        log.info("listening", address=self.address, enrolment=self.enrol_address, fleet=self._setup.fleet)

    async def _keep_admin_context(self) -> None:
        key, csr = new_key_and_csr()
        try:
            issued = self.ca.issue_operator(csr, ADMIN, Role.ADMIN, ADMIN_TTL_SECONDS)
        except ClockError as error:
            self.kept = await self._kept_before(error)
            return
        context = Context(
            scheduler=self.address,
            ca_pem=self.ca.certificate_pem.decode(),
            cert_pem=issued.certificate_pem.decode(),
            key_pem=key.decode(),
            fleet=self._setup.fleet,
            operator=ADMIN,
            role=Role.ADMIN.value,
            fleet_id=self.ca.fleet_id,
        )
        try:
            await self.controller.ask(
                EnrolOperator(ADMIN, Role.ADMIN.value, issued.expires_at), by=Asker(AskerKind.START)
            )
            self.kept = await asyncio.to_thread(keep_context, self._setup.context, context)
        except Refused as refusal:
            raise CommandFailed(str(refusal)) from refusal
        except OSError as error:
            raise CommandFailed(
                f"cannot write the context file {self._setup.context}: {error.strerror or error}",
                hint="Set GALACTICA_CONTEXT to a writable path.",
            ) from error
        if self.kept.aside is not None:
            log.warning("context_file_damaged", file=str(self._setup.context), moved_to=str(self.kept.aside))

    async def _kept_before(self, error: ClockError) -> Kept:
        """The admin's context of an earlier start, which is better than one that nobody accepts. Raises CommandFailed:
        there is none."""
        kept = await asyncio.to_thread(kept_before, self._setup.context, self.ca.fleet_id)
        if kept is None:
            raise CommandFailed(str(error)) from error
        log.warning("admin_certificate_not_renewed", reason=str(error))
        return kept

    async def end(self) -> None:
        """Close the ports; agents keep their cells."""
        self.dispatcher.close()
        await asyncio.gather(*(server.stop(GRACE_SECONDS) for server in self._servers))
        log.info("ended")

    async def close(self) -> None:
        """Close everything that is still open. Also valid after ``end``."""
        await asyncio.gather(*(server.stop(None) for server in self._servers))
        await self._journal.close()


def has_authority(data: Path) -> bool:
    return (data / "ca" / AUTHORITY_FILE).exists()


def check_authority(data: Path) -> None:
    """Raises CommandFailed: without its CA no fleet can be grown anew."""
    if not has_authority(data):
        raise CommandFailed(
            f"--regrow needs the fleet's CA, and {data / 'ca'} has none",
            hint="Put a backup of ca/ there. A fleet whose CA is lost cannot be grown anew: its agents trust no other.",
        )


def check_empty(fleet: Fleet, data: Path) -> None:
    """Raises CommandFailed: a journal with content knows what its fleet wants. One that is being grown anew goes on."""
    if nothing_wanted(fleet) or (fleet.regrowth is not None and not fleet.regrowth.is_planted):
        return
    raise CommandFailed(
        f"--regrow is for a lost journal, but the one in {data} has {len(fleet.groups)} groups and "
        f"{len(fleet.servers)} servers",
        hint="Start without --regrow. If that journal is worth nothing, move it away first, and leave ca/ there.",
    )


def open_journal(data: Path) -> Journal:
    """The journal in the data directory. Raises CommandFailed."""
    try:
        return SqliteJournal.open(data)
    except JournalError as error:
        raise CommandFailed(str(error)) from error
    except OSError as error:
        raise CommandFailed(
            f"cannot use the data directory {data}: {error.strerror or error}",
            hint="Choose another one: --data DIR",
        ) from error


def check_free(address: Address) -> None:
    """Check the address first, because gRPC's own error is less clear. Raises CommandFailed."""
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, name = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(name)
    except OSError as error:
        reason = "it is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
        raise CommandFailed(
            f"cannot listen on {address}: {reason}",
            hint="Is a scheduler already running here? Try galactica status, or another address: --listen HOST:PORT",
        ) from error


def _hosts(*hosts: str) -> list[str]:
    return [socket.gethostname(), *(host for host in hosts if host not in _WILDCARDS)]


def _near(address: Address, port: int) -> str:
    """The address for clients on this machine."""
    return str(Address(_WILDCARDS.get(address.host, address.host), port))
