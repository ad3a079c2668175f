"""Counts tokens by asking a server, so that prompts have exactly the length that the server will see.

Two dialects of ``/tokenize`` exist: vLLM's (``prompt`` or ``messages``) and llama.cpp's (``content``, with
``/apply-template`` for chat).  Calls block: prompts are made before any load.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from harness.engines.asker import base_url
from harness.engines.capabilities import TokenizeDialect
from workloads.request import Message
from workloads.tokens import CountError


class ServerCounter:
    """A ``workloads.tokens.TokenCounter`` over a server's ``/tokenize``.  Keeps one connection; close it after use."""

    def __init__(
        self,
        url: str,
        dialect: TokenizeDialect,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        self.name = f"the server's /tokenize ({dialect})"
        self._dialect = dialect
        self._model = {"model": model} if model else {}
        parts = urlsplit(base_url(url))
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._path = parts.path
        self._connection = kind(parts.hostname or "", parts.port, timeout=timeout_s)
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def __enter__(self) -> ServerCounter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def count_prompt(self, prompt: str) -> int:
        """Tokens of a completions prompt, special tokens that the server adds included.  Raises CountError."""
        if self._dialect == "vllm":
            return self._count({**self._model, "prompt": prompt, "add_special_tokens": True})
        return self._count({"content": prompt, "add_special": True, "parse_special": True})

    def count_messages(self, messages: Sequence[Message]) -> int:
        """Tokens of a chat prompt after the template, generation prompt included.  Raises CountError."""
        if self._dialect == "vllm":
            return self._count({**self._model, "messages": list(messages), "add_generation_prompt": True})
        prompt = self._post("/apply-template", {"messages": list(messages)}).get("prompt")
        if not isinstance(prompt, str):
            raise CountError("the server's /apply-template gave no prompt")
        return self.count_prompt(prompt)

    def _count(self, body: Mapping[str, Any]) -> int:
        data = self._post("/tokenize", body)
        tokens, count = data.get("tokens"), data.get("count")
        if isinstance(tokens, list):
            return len(tokens)
        if isinstance(count, int):
            return count
        raise CountError("the server's /tokenize gave neither tokens nor a count")

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        data = json.dumps(body).encode()
        for is_last_try in (False, True):
            try:
                self._connection.request("POST", self._path + path, data, self._headers)
                response = self._connection.getresponse()
                text = response.read()
                break
            except (OSError, http.client.HTTPException) as error:
                # An idle connection may have been closed by the server; a second failure is a real one.
                self._connection.close()
                if is_last_try:
                    raise CountError(f"POST {path} failed: {error or type(error).__name__}") from None
        if response.status != 200:
            raise CountError(f"POST {path} answered HTTP {response.status}: {text[:200].decode('utf-8', 'replace')}")
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise CountError(f"POST {path} did not answer with a JSON object")
        return answer
