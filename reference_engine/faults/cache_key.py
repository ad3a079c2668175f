"""Faults of the prefix cache's key: F05, F06, F08."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from reference_engine.faults.lab import Lab
from reference_engine.faults.registry import fault
from reference_engine.kv import prefix_cache
from reference_engine.kv.prefix_cache import CachedBlock, chain_hash, root_digest

Holds = Callable[[CachedBlock, tuple[int, ...], CachedBlock | None, str], bool]


def _accept(lab: Lab, is_taken_for_equal: Holds) -> None:
    """Let an entry pass for other content; an occasion is a look-up that only the fault lets through."""

    def make(holds: Holds) -> Holds:
        def faulty(entry: CachedBlock, tokens: tuple[int, ...], parent: CachedBlock | None, salt: str) -> bool:
            if holds(entry, tokens, parent, salt):
                return True
            return is_taken_for_equal(entry, tokens, parent, salt) and lab.fires()

        return faulty

    lab.wrap(CachedBlock, "holds", make)


def _hash_with(lab: Lab, hash_block: Callable[[bytes, Sequence[int]], bytes]) -> None:
    lab.wrap(lab.kv.cache, "_hash_block", lambda original: hash_block)


@fault(
    "F05",
    "the prefix hash ignores the parent block: equal blocks after different beginnings are one",
    source="vllm-project/vllm#12621 (what a chained hash prevents)",
    trigger="the same block of tokens after two different beginnings",
)
def hash_ignores_parent(lab: Lab) -> None:
    lab.tolerate_lost_blocks()
    _hash_with(lab, lambda parent, tokens: chain_hash(b"", tokens))
    _accept(lab, lambda entry, tokens, parent, salt: entry.tokens == tokens and entry.salt == salt)


@fault(
    "F06",
    "the prefix hash has 8 bits and tokens are not compared",
    source="GHSA-rm76-4mrf-v9r8, vllm-project/vllm#12621",
    trigger="some tens of different blocks",
)
def short_hash_unverified(lab: Lab) -> None:
    lab.tolerate_lost_blocks()
    _hash_with(lab, lambda parent, tokens: chain_hash(parent, tokens)[:1])
    _accept(lab, lambda entry, tokens, parent, salt: True)


@fault(
    "F08",
    "the cache key ignores the salt (as others did the adapter)",
    source="vllm-project/vllm#44701, #51640",
    trigger="one prompt under two values of cache_salt",
)
def salt_ignored(lab: Lab) -> None:
    lab.wrap(prefix_cache, "root_digest", lambda original: lambda salt: root_digest(""))

    def same_but_for_salt(entry: CachedBlock, tokens: tuple[int, ...], parent: Any, salt: str) -> bool:
        return entry.tokens == tokens and entry.parent is parent

    _accept(lab, same_but_for_salt)
