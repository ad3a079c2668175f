"""Where a server is: its URL taken apart, its addresses, and the way to connect to it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from harness.load.connection import Connection, SocketConnection, TransportConnection, describe
from harness.load.stamps import StampClock, enable


class ConnectError(Exception):
    """No connection: ``error_class`` is ``connect`` or ``tls``."""

    def __init__(self, error_class: str, sentence: str) -> None:
        super().__init__(sentence)
        self.error_class = error_class


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server.  ``path`` is what its URL puts before every path, without a slash at the end."""

    host: str
    port: int
    path: str
    authority: str
    is_secure: bool

    @classmethod
    def of(cls, url: str) -> Endpoint:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        host = parts.hostname or ""
        return cls(
            host=host,
            port=parts.port or (443 if secure else 80),
            path=parts.path.rstrip("/"),
            authority=parts.netloc.rpartition("@")[2],
            is_secure=secure,
        )


class Connector:
    """Makes connections to one endpoint.  Its name is looked up once."""

    def __init__(self, endpoint: Endpoint, number: int, *, verify_tls: bool, clock: StampClock | None) -> None:
        self.endpoint = endpoint
        self._number = number
        self._clock = clock
        self._context = tls_context(verify_tls) if endpoint.is_secure else None
        self._addresses: list[tuple[socket.AddressFamily, tuple[object, ...]]] = []

    async def connect(self, on_idle_end: Callable[[Connection], None]) -> Connection:
        """A fresh connection.  Raises :class:`ConnectError`."""
        endpoint = self.endpoint
        sock = await self._socket()
        if self._context is None and has_readers():
            stamped = self._clock is not None and enable(sock)
            return SocketConnection(sock, self._clock if stamped else None, self._number, on_idle_end)
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: TransportConnection(self._number, on_idle_end),
                sock=sock,
                ssl=self._context,
                server_hostname=endpoint.host if self._context is not None else None,
            )
        except (OSError, ssl.SSLError) as error:
            sock.close()
            raise ConnectError("tls", f"TLS failed: {tls_words(error)}") from None
        except asyncio.CancelledError:
            sock.close()
            raise
        return connection

    async def _socket(self) -> socket.socket:
        """A connected socket to the first address that answers."""
        loop, endpoint = asyncio.get_running_loop(), self.endpoint
        try:
            if not self._addresses:
                found = await loop.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
                self._addresses = [(family, address) for family, _, _, _, address in found]
            problem: OSError | None = None
            for position, (family, address) in enumerate(self._addresses):
                sock = socket.socket(family, socket.SOCK_STREAM)
                try:
                    sock.setblocking(False)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    await loop.sock_connect(sock, address)
                except BaseException as error:
                    sock.close()
                    if not isinstance(error, OSError):
                        raise
                    problem = error
                else:
                    self._addresses.insert(0, self._addresses.pop(position))
                    return sock
        except OSError as error:
            problem = error
        assert problem is not None
        words = f"could not connect to {endpoint.host}:{endpoint.port}: {describe(problem)}"
        raise ConnectError("connect", words) from None


def has_readers() -> bool:
    """Whether this event loop tells when a plain socket can be read (Windows' own does not)."""
    return "Proactor" not in type(asyncio.get_running_loop()).__name__


def tls_context(verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def tls_words(error: BaseException) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return describe(error)
