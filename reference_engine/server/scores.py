"""Logprobs as the API words them: parallel lists for completions, ``content[]`` for chat, one object a prompt token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reference_engine.detokenizer import Detokenizer, TokenTable
from reference_engine.outputs import PromptLogprobs, TokenLogprob

LOWEST = -9999.0  # what minus infinity becomes: JSON has no word for it


def text_and_offsets(tokens: Sequence[int], table: TokenTable, *, show_special: bool) -> tuple[str, list[int]]:
    """Text of ``tokens``, and where in it each of them begins (characters)."""
    text = Detokenizer(table.with_special if show_special else table.shown)
    offsets = []
    for token in tokens:
        offsets.append(text.offset)
        text.push(token)
    text.finish()
    return text.take(), offsets


def legacy_logprobs(
    tokens: Sequence[int], entries: Sequence[TokenLogprob | None], offsets: list[int], count: int, table: TokenTable
) -> dict[str, Any]:
    """The form of /v1/completions.  ``top_logprobs`` has the ``count`` best tokens, and the chosen one besides."""
    return {
        "tokens": [_name(token, table) for token in tokens],
        "token_logprobs": [None if entry is None else _finite(entry.logprob) for entry in entries],
        "top_logprobs": [None if entry is None else _top(entry, count, table) for entry in entries],
        "text_offset": offsets,
    }


def chat_logprobs(entries: Sequence[TokenLogprob], table: TokenTable) -> dict[str, Any]:
    """The form of /v1/chat/completions."""
    content = [
        {
            **_chat_token(entry.token, entry.logprob, table),
            "top_logprobs": [_chat_token(token, value, table) for token, value in entry.top],
        }
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def prompt_logprobs(scores: PromptLogprobs, table: TokenTable) -> list[dict[str, Any] | None]:
    """Per prompt token an object keyed by token id: logprob, rank, text.  The first token has none."""
    described: list[dict[str, Any] | None] = []
    for entry in scores:
        if entry is None:
            described.append(None)
            continue
        tokens = {str(token): _scored(token, value, rank, table) for rank, (token, value) in enumerate(entry.top, 1)}
        tokens.setdefault(str(entry.token), _scored(entry.token, entry.logprob, entry.rank, table))
        described.append(tokens)
    return described


def _top(entry: TokenLogprob, count: int, table: TokenTable) -> dict[str, float]:
    top = {_name(token, table): _finite(value) for token, value in entry.top[:count]}
    top.setdefault(_name(entry.token, table), _finite(entry.logprob))
    return top


def _name(token: int, table: TokenTable) -> str:
    r"""A token as text; ``bytes:\x..`` where it is not whole characters, so that no two tokens share a name."""
    data = table.with_special(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _chat_token(token: int, logprob: float, table: TokenTable) -> dict[str, Any]:
    data = table.with_special(token)
    return {"token": data.decode(errors="replace"), "logprob": _finite(logprob), "bytes": list(data)}


def _scored(token: int, logprob: float, rank: int | None, table: TokenTable) -> dict[str, Any]:
    text = table.with_special(token).decode(errors="replace")
    return {"logprob": _finite(logprob), "rank": rank, "decoded_token": text}


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST)
