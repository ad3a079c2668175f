"""HTTP for asking an engine about itself: patient with servers that misbehave, never raising for what they send."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

MAX_BODY = 4 << 20  # bytes; an answer that is longer is cut and counts as no JSON


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back.  ``status`` is None when no HTTP answer came; ``error`` then says why, ``late`` that time ran out."""

    status: int | None
    text: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None
    late: bool = False

    @property
    def ok(self) -> bool:
        return self.status == 200

    def json(self) -> Any:
        """The body as JSON, or None when it is none."""
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError):
            return None

    def mapping(self) -> dict[str, Any]:
        """The body as a JSON object; empty when the answer is not 200 or not an object."""
        data = self.json() if self.ok else None
        return data if isinstance(data, dict) else {}


def base_url(url: str) -> str:
    """The server's root: without a trailing slash and without ``/v1``, which people like to add."""
    url = url.strip().rstrip("/")
    if "://" not in url:
        url = f"http://{url}"
    return url.removesuffix("/v1").rstrip("/")


class Asker:
    """GET and POST against one server, as an async context manager."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = base_url(url)
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Asker:
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            trust_env=False,
            # A fresh connection each time: servers that close idle ones early would make a question fail by chance.
            connector=aiohttp.TCPConnector(force_close=True),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def get(self, path: str, timeout_s: float = 5.0) -> Reply:
        return await self._ask("GET", path, None, timeout_s)

    async def post(self, path: str, body: Mapping[str, Any], timeout_s: float) -> Reply:
        return await self._ask("POST", path, body, timeout_s)

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float) -> Reply:
        assert self._session is not None
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(
                method, self.url + path, json=body, timeout=timeout, allow_redirects=False
            ) as response:
                data = await read_up_to(response, MAX_BODY)
                headers = {name.lower(): value for name, value in response.headers.items()}
                return Reply(response.status, data.decode("utf-8", "replace"), headers)
        except TimeoutError:
            return Reply(None, error=f"no answer within {timeout_s:g} s", late=True)
        except (aiohttp.ClientError, OSError, ValueError, asyncio.IncompleteReadError) as error:
            return Reply(None, error=str(error) or type(error).__name__)


async def read_up_to(response: aiohttp.ClientResponse, limit: int) -> bytes:
    data = bytearray()
    async for piece in response.content.iter_any():
        data += piece
        if len(data) >= limit:
            break
    return bytes(data[:limit])
