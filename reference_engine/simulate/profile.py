"""What a step costs on some machine with some model: a profile, read from a JSON file.

::

    step seconds = fixed + per_sequence * sequences + work                 roofline: work = max(memory, arithmetic)
    memory       = weights + per_context_token * (1 + page_overhead / block_size) * context tokens read
    arithmetic   = per_token * tokens computed                             otherwise: work = memory + arithmetic

Copies of blocks and swaps are added.  Every number of a profile has a ``source``: ``arithmetic`` (from datasheets and
model shapes), ``measured``, ``fitted`` (chosen so that a published result comes out), or ``assumed``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from reference_engine.config import ConfigError
from reference_engine.kv.contract import blocks_for
from reference_engine.plan import StepPlan

FOLDER = Path(__file__).parent / "profiles"
SOURCES = ("arithmetic", "measured", "fitted", "assumed")


@dataclass(frozen=True, slots=True)
class Profile:
    """A machine and a model.  Times in seconds, sizes in bytes, lengths in tokens."""

    name: str
    about: str
    kv_slots: int  # token slots of the KV pool
    kv_bytes_per_token: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    roofline: bool  # whether memory traffic and arithmetic overlap
    fixed: float  # s a step, whatever is in it
    per_sequence: float  # s a sequence in the step
    weights: float  # s to read the weights once
    per_context_token: float  # s to read the K/V of one token
    per_token: float  # s of arithmetic for one token
    page_overhead: float  # context reads take 1 + page_overhead / block_size times as long
    copy_block_token: float  # s to copy the K/V of one token on the device
    swap_call: float  # s to start one copy between host and device
    swap_calls_per_block: int  # copies that one block takes: K and V of every layer
    swap_token: float  # s to move the K/V of one token between host and device
    output_mean: float  # tokens of an answer when the client sets no length (server only)
    sources: dict[str, str]  # field -> one of SOURCES, with a remark after a colon

    def step_seconds(self, plan: StepPlan, block_size: int) -> float:
        """Duration of a step."""
        context = tokens = 0
        for part in plan.seqs:
            query = len(part.tokens)
            tokens += query
            context += part.start + query
        seconds = self.cost(len(plan.seqs), tokens, context, block_size)
        if plan.copies:
            seconds += len(plan.copies) * block_size * self.copy_block_token
        swapped = len(getattr(plan, "swap_out", ())) + len(getattr(plan, "swap_in", ()))
        return seconds + swapped * self.swap_block_seconds(block_size)

    def cost(self, sequences: int, tokens: int, context: int, block_size: int) -> float:
        """Duration of a step with so many sequences, computed tokens and context tokens read."""
        memory = self.weights + self.per_context_token * (1 + self.page_overhead / block_size) * context
        arithmetic = self.per_token * tokens
        work = max(memory, arithmetic) if self.roofline else memory + arithmetic
        return self.fixed + self.per_sequence * sequences + work

    def swap_block_seconds(self, block_size: int) -> float:
        """Duration of moving one block between host and device, one way."""
        return self.swap_calls_per_block * self.swap_call + block_size * self.swap_token

    def swap_seconds(self, tokens: int, block_size: int) -> float:
        """Duration of moving a sequence of so many tokens out and in again."""
        return 2 * blocks_for(tokens, block_size) * self.swap_block_seconds(block_size)

    def recompute_seconds(self, tokens: int, block_size: int) -> float:
        """Duration of computing a sequence of so many tokens again, in one step of its own."""
        return self.cost(1, tokens, tokens, block_size)


def names() -> list[str]:
    """Profiles that come with the engine."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_profile(name: str) -> Profile:
    """A profile by name, or from a file.  Raises ConfigError."""
    path = Path(name) if name.endswith(".json") else FOLDER / f"{name}.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(
            f"there is no simulation profile {name!r}; choose one of {', '.join(names())}, or give a .json file"
        ) from None
    except ValueError as error:
        raise ConfigError(f"simulation profile {name}: not valid JSON ({error})") from None
    return parse_profile(raw, name)


def parse_profile(raw: Any, where: str) -> Profile:
    """Check a profile's fields.  Raises ConfigError naming ``where`` and the field."""
    known = {field.name: field.type for field in fields(Profile)}
    if not isinstance(raw, dict) or set(raw) != set(known):
        wrong = sorted(set(known) ^ set(raw)) if isinstance(raw, dict) else ["(not an object)"]
        raise ConfigError(f"simulation profile {where}: fields missing or not known: {', '.join(wrong)}")
    for field, kind in known.items():
        value = raw[field]
        number = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
        right = {
            "str": isinstance(value, str),
            "bool": isinstance(value, bool),
            "int": number and isinstance(value, int) and value > 0,
            "float": number,
        }.get(str(kind), isinstance(value, dict))
        if not right:
            raise ConfigError(f"simulation profile {where}: {field} cannot be {value!r}")
    return Profile(**raw)
