"""Conversations from a ShareGPT file: JSON, a list of ``{"conversations": [{"from": "human" | "gpt", "value": ...}]}``."""

from __future__ import annotations

import json
from pathlib import Path

from workloads.request import WorkloadError

HUMAN = {"human", "user"}
MODEL = {"gpt", "chatgpt", "bing", "bard", "assistant"}

Exchange = tuple[str, str]  # what the user said, what the model answered


def read_sharegpt(path: Path) -> list[list[Exchange]]:
    """Conversations that begin with the user and alternate, up to where they stop doing so.  Raises WorkloadError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WorkloadError(f"workload chat: cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise WorkloadError(f"workload chat: {path} is not JSON: {error}") from None
    if not isinstance(document, list):
        raise WorkloadError(f"workload chat: {path} should hold a list of conversations")
    found = []
    for entry in document:
        said = entry.get("conversations") or entry.get("conversation") if isinstance(entry, dict) else None
        turns = pair_up(said) if isinstance(said, list) else []
        if turns:
            found.append(turns)
    if not found:
        raise WorkloadError(f"workload chat: {path} holds no conversation that begins with a user and an answer")
    return found


def pair_up(said: list[object]) -> list[Exchange]:
    """Question and answer pairs from the start of a conversation."""
    pairs: list[Exchange] = []
    for question, answer in zip(said[::2], said[1::2], strict=False):
        if not (isinstance(question, dict) and isinstance(answer, dict)):
            break
        if question.get("from") not in HUMAN or answer.get("from") not in MODEL:
            break
        texts = question.get("value"), answer.get("value")
        if not all(isinstance(text, str) and text.strip() for text in texts):
            break
        pairs.append((str(texts[0]), str(texts[1])))
    return pairs
