"""Reads an engine's ``/metrics`` over one kept connection and names the values in our vocabulary."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from harness.engines.errors import ExpositionError
from harness.engines.metrics import parse_exposition

Row = dict[str, Any]
TIMEOUT_S = 2.0


class Scraper:
    """``sample()`` gives the rows of one scrape; a scrape that fails gives none and notes why in ``problem``."""

    def __init__(
        self,
        url: str,
        *,
        path: str = "/metrics",
        api_key: str | None = None,
        parse: Callable[[str], Mapping[str, float]] = parse_exposition,
    ) -> None:
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
        self._path = parts.path.rstrip("/") + path
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._parse = parse
        self.latest: dict[str, float] = {}
        self.samples = self.failures = 0
        self.problem: str | None = None

    def sample(self) -> Iterable[Row]:
        """One row a metric.  ``t`` is the middle of the exchange, when the server made the text."""
        before = time.monotonic_ns()
        try:
            self._connection.request("GET", self._path, headers=self._headers)
            response = self._connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise http.client.HTTPException(f"HTTP {response.status}")
            values = self._parse(body.decode("utf-8", "replace"))
        except (OSError, http.client.HTTPException, ExpositionError) as error:
            self._connection.close()
            self.failures += 1
            self.problem = f"{self._path}: {error or type(error).__name__}"
            return []
        t = (before + time.monotonic_ns()) // 2
        self.latest = dict(values)
        self.samples += 1
        return [{"t": t, "name": name, "value": value} for name, value in values.items()]

    def close(self) -> None:
        self._connection.close()
