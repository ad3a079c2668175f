"""Errors as the OpenAI API words them: ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

import orjson

from reference_engine.request import RequestRejected

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """Answers the call with ``status`` and an error envelope."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    @property
    def headers(self) -> dict[str, str]:
        """Extra response headers: a client refused for load is told when to come back (seconds)."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": "1"} if self.status in (429, 503) else {}

    def body(self) -> bytes:
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return orjson.dumps(
            {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code or self.status}}
        )


def rejection(error: RequestRejected) -> ApiError:
    """The engine's refusal as an answer."""
    return ApiError(
        str(error), status=error.status, param=error.param, code="queue_full" if error.status == 429 else None
    )
