"""Emptying the prefix cache of a server that goes on running, by the endpoint that its kind has for it.

The reset is verified by what follows: a run whose prompts came from a cache more than the workload means is void.
"""

from __future__ import annotations

import urllib.error
import urllib.request

# In this order: vLLM (development mode), SGLang.
ENDPOINTS = ("/reset_prefix_cache", "/flush_cache")
TIMEOUT_S = 30.0


class ResetError(RuntimeError):
    """The cache could not be emptied; the message says what to do instead."""


def reset_cache(url: str, api_key: str | None = None) -> str:
    """POST to the first endpoint that answers 200 and return it.  Raises ResetError."""
    base = url.rstrip("/").removesuffix("/v1")
    for path in ENDPOINTS:
        request = urllib.request.Request(base + path, method="POST", data=b"")
        if api_key:
            request.add_header("Authorization", f"Bearer {api_key}")
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                if answer.status == 200:
                    return path
        except urllib.error.HTTPError:
            continue
        except OSError as error:
            raise ResetError(f"no answer from {base}{path}: {error}") from None
    raise ResetError(
        f"{base} has none of {', '.join(ENDPOINTS)}; use --reset prompts (new prompts for every pair), or let the gate "
        "start the engine from a recipe or a command"
    )
