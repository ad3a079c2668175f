"""How to make a client, as plain data that can be sent to another process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from harness.load.client import Client
from harness.load.limits import Timeouts

if TYPE_CHECKING:
    from harness.load.portable import PortableClient


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """Everything that a client is made of."""

    urls: tuple[str, ...]
    api_key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timeouts: Timeouts = field(default_factory=Timeouts)
    verify_tls: bool = True
    transport: Literal["native", "aiohttp"] = "native"

    def make(self) -> Client | PortableClient:
        """A client to be entered.  Raises ValueError on a header that cannot be sent."""
        if self.transport == "aiohttp":
            from harness.load.portable import PortableClient

            kind: type[Client] | type[PortableClient] = PortableClient
        else:
            kind = Client
        return kind(
            list(self.urls),
            api_key=self.api_key,
            headers=self.headers,
            timeouts=self.timeouts,
            verify_tls=self.verify_tls,
        )
