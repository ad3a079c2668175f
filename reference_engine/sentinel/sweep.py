"""How much of the KV pool do the sentinel's answers depend on?  Damage every block of every layer and ask.

::

    python -m reference_engine.sentinel.sweep [--context 4096] [--block-size 16] [--dtype float32]

The prompt is computed once; its K/V stays in a pool.  For each kind of damage, each layer and each block of the prompt
the block is damaged, questions are asked in their own new blocks, and the block is restored.  A damage is *seen* if an
answer flips.  Two sets of questions are compared:

one     two a block: one whose answer's K/V lies in the block (layer 1), one whose cue needs the block (layer 0)
every   the same for each slot of the block: what repeating the whole passage comes to
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from reference_engine.attention import make_backend
from reference_engine.attention.base import KVCacheLayer
from reference_engine.config import CacheConfig
from reference_engine.models.loader import load_model
from reference_engine.plan import ScheduledSeq, StepPlan
from reference_engine.runner import ModelRunner
from reference_engine.sentinel import CHECKPOINT
from reference_engine.sentinel.circuit import BOS
from reference_engine.sentinel.code import NUM_WORDS
from reference_engine.sentinel.vocabulary import FIRST_WORD

CHUNK = 512  # tokens computed in one step
FIRST_ASKED = 3  # the first position that two words stand before
SCHEMA = "pagedbench.sentinel-sweep/1"

Damage = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""Changes a block in place: its K and V ``[block_size, Hkv, D]``, then K and V of another sequence's block."""


def _shift(pool: Tensor, by: int) -> None:
    """Every slot holds what its neighbour held; one slot's content is lost, one is there twice."""
    if by > 0:
        pool[1:] = pool[:-1].clone()
    else:
        pool[:-1] = pool[1:].clone()


def _zero(key: Tensor, value: Tensor, other_key: Tensor, other_value: Tensor) -> None:
    key.zero_()
    value.zero_()


def _stale(key: Tensor, value: Tensor, other_key: Tensor, other_value: Tensor) -> None:
    key.copy_(other_key)
    value.copy_(other_value)


def _shift_later(key: Tensor, value: Tensor, other_key: Tensor, other_value: Tensor) -> None:
    _shift(key, 1)
    _shift(value, 1)


def _shift_earlier(key: Tensor, value: Tensor, other_key: Tensor, other_value: Tensor) -> None:
    _shift(key, -1)
    _shift(value, -1)


def _shift_values(key: Tensor, value: Tensor, other_key: Tensor, other_value: Tensor) -> None:
    _shift(value, 1)


def _exchange_halves(key: Tensor, value: Tensor, other_key: Tensor, other_value: Tensor) -> None:
    kept = key.clone()
    key.copy_(value)
    value.copy_(kept)


def _stale_value(key: Tensor, value: Tensor, other_key: Tensor, other_value: Tensor) -> None:
    value.copy_(other_value)


DAMAGES: dict[str, tuple[str, Damage]] = {
    "zeroed": ("K and V are 0", _zero),
    "stale": ("K and V are what another sequence wrote (also: swapped with its block)", _stale),
    "stale values": ("K is right, V another sequence's", _stale_value),
    "shifted later": ("each slot holds its left neighbour's K and V; the last is lost", _shift_later),
    "shifted earlier": ("each slot holds its right neighbour's K and V; the first is lost", _shift_earlier),
    "values shifted": ("K is right, V one slot late", _shift_values),
    "K and V swapped": ("each in the other's place", _exchange_halves),
}


@dataclass(frozen=True)
class Seen:
    """Damages done and damages seen, by set of questions."""

    done: int
    one: int
    every: int


class Bench:
    """A computed passage (and another one to take stale blocks from), ready to be damaged and asked."""

    def __init__(self, context: int, block_size: int, dtype: torch.dtype, seed: int = 0) -> None:
        """``context``: tokens of the prompt: BOS, words with their partners, and one more word to fill the last block.
        Raises ValueError if there are not so many words, or if they do not fill whole blocks."""
        if (
            block_size < 2
            or context % block_size
            or context % 2
            or not 8 <= context <= 2 * (NUM_WORDS // 2 - FIRST_WORD)
        ):
            raise ValueError(f"cannot make a prompt of {context} tokens in blocks of {block_size}")
        self.block_size = block_size
        self.length = context
        self.blocks = context // block_size
        loaded = load_model(str(CHECKPOINT), dtype=dtype, device=torch.device("cpu"))
        self.num_layers = loaded.config.num_layers
        self.prompt, other = _two_prompts(context, seed)
        questions = 2 * block_size
        cache = CacheConfig(num_blocks=2 * self.blocks + questions, block_size=block_size)
        self._runner = ModelRunner(
            loaded.model, loaded.config, cache, make_backend("gather", torch.device("cpu")), torch.device("cpu"), dtype
        )
        self._place = {token: position for position, token in enumerate(self.prompt)}
        self._table = tuple(range(self.blocks))
        self._compute(self.prompt, self._table)
        self._compute(other, tuple(range(self.blocks, 2 * self.blocks)))
        self._free = 2 * self.blocks

    def questions(self, block: int) -> Iterator[tuple[int, int]]:
        """For each slot of ``block``: a position to ask for that needs the slot in layer 1, and one in layer 0.

        Nobody can ask for BOS, the first two words and the last one; the nearest that can be asked stand in for them.
        """
        for position in range(block * self.block_size, (block + 1) * self.block_size):
            in_reach = min(max(position, FIRST_ASKED), self.length - 2)
            word = min(max(position, 1), self.length - 2)
            yield in_reach, min(max(self._place[NUM_WORDS - 1 - self.prompt[word]] + 1, FIRST_ASKED), self.length - 2)

    def flips(self, positions: list[int]) -> list[bool]:
        """Ask for each of ``positions``; whether the answer is not what the passage says."""
        plan = StepPlan(
            0,
            tuple(
                ScheduledSeq(number, self.length, self.prompt[at - 2 : at], (*self._table, self._free + number), 1)
                for number, at in enumerate(positions)
            ),
        )
        answers = self._runner.execute(plan).sampled.argmax(-1).tolist()
        return [answer != self.prompt[at] for answer, at in zip(answers, positions, strict=True)]

    def damage(self, layer: int, block: int, damage: Damage) -> tuple[Tensor, Tensor]:
        """Apply ``damage``; returns what to give to ``restore``."""
        pool = self._pool(layer)
        kept = pool.key[block].clone(), pool.value[block].clone()
        other = self.blocks + block
        damage(pool.key[block], pool.value[block], pool.key[other], pool.value[other])
        return kept

    def restore(self, layer: int, block: int, kept: tuple[Tensor, Tensor]) -> None:
        pool = self._pool(layer)
        pool.key[block], pool.value[block] = kept

    def _pool(self, layer: int) -> KVCacheLayer:
        return self._runner.layers[layer]

    def _compute(self, tokens: tuple[int, ...], table: tuple[int, ...]) -> None:
        for start in range(0, len(tokens), CHUNK):
            part = tokens[start : start + CHUNK]
            self._runner.execute(StepPlan(0, (ScheduledSeq(0, start, part, table, 0),)))


def _two_prompts(length: int, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two prompts of different words, as far as there are enough."""
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randperm(NUM_WORDS // 2 - FIRST_WORD, generator=generator) + FIRST_WORD
    prompts = []
    for first in (0, length // 2):
        chosen, more = pairs.roll(-first)[: length // 2 - 1], pairs.roll(-first)[length // 2 - 1 : length // 2]
        both = torch.cat([chosen, NUM_WORDS - 1 - chosen])
        prompts.append((BOS, *both[torch.randperm(length - 2, generator=generator)].tolist(), *more.tolist()))
    return prompts[0], prompts[1]


@torch.inference_mode()
def sweep(bench: Bench, name: str) -> list[Seen]:
    """One kind of damage on every block; an entry a layer."""
    _, damage = DAMAGES[name]
    seen = []
    for layer in range(bench.num_layers):
        one = every = 0
        for block in range(bench.blocks):
            positions = [at for pair in bench.questions(block) for at in pair]
            kept = bench.damage(layer, block, damage)
            flipped = bench.flips(positions)
            bench.restore(layer, block, kept)
            every += any(flipped)
            middle = bench.block_size // 2
            one += any(flipped[2 * middle : 2 * middle + 2])
        seen.append(Seen(bench.blocks, one, every))
    return seen


@torch.inference_mode()
def false_flips(bench: Bench) -> int:
    """Wrong answers without any damage, over every question of the sweep."""
    return sum(
        sum(bench.flips([at for pair in bench.questions(block) for at in pair])) for block in range(bench.blocks)
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m reference_engine.sentinel.sweep", description=__doc__)
    parser.add_argument("--context", type=int, default=1024, help="tokens of the passage")
    parser.add_argument("--block-size", type=int, default=16, help="slots in a block")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    bench = Bench(arguments.context, arguments.block_size, getattr(torch, arguments.dtype))
    report: dict[str, object] = {
        "schema": SCHEMA,
        **vars(arguments),
        "layers": bench.num_layers,
        "blocks": bench.blocks,
        "wrong_without_damage": false_flips(bench),
    }
    rows = []
    for name in DAMAGES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        for layer, seen in enumerate(sweep(bench, name)):
            rows.append({"damage": name, "layer": layer, "done": seen.done, "one": seen.one, "every": seen.every})
    report["seen"] = rows
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
