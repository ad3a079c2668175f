"""``orca-max``, ``orca-pow2``, ``orca-oracle``: Orca with a buddy allocator, as the PagedAttention paper models it.

A sequence reserves slots for its prompt and for as much output as the policy believes it will have:

===============  =======================================================================================
``orca-max``     up to ``max_model_len`` in all, whatever was asked for
``orca-pow2``    the next power of two of ``max_tokens``: at most twice too much
``orca-oracle``  ``max_tokens``, which is the truth where clients ask for exact lengths (``ignore_eos``)
===============  =======================================================================================

The allocator then rounds the run up to a power of two of blocks.  Free blocks are *external* while the sequence at the
head of the queue was refused and none of their pieces is large enough for it; for ``orca-max`` pieces smaller than a
reservation are always.
"""

from __future__ import annotations

from collections.abc import Iterable

from reference_engine.config import CacheConfig, ConfigError, KVPolicy
from reference_engine.kv.contract import blocks_for
from reference_engine.kv.prefix_cache import CachedBlock
from reference_engine.policies.buddy import BuddyAllocator, order_of
from reference_engine.policies.reserving import ReservingKVManager, Run
from reference_engine.request import Request, RequestRejected, Sequence


class OrcaKVManager(ReservingKVManager):
    """One buddy piece a sequence."""

    def __init__(self, config: CacheConfig, max_model_len: int, policy: KVPolicy) -> None:
        super().__init__(config)
        self.policy = policy
        self.max_model_len = max_model_len
        self.buddy = BuddyAllocator(config.num_blocks)
        longest = blocks_for(max_model_len, config.block_size)
        if policy == "orca-max" and order_of(longest) > self.buddy.largest:
            raise ConfigError(
                f"policy orca-max reserves {max_model_len} tokens for each sequence, {1 << order_of(longest)} blocks of "
                f"{config.block_size} from a buddy allocator, but the KV pool has {config.num_blocks} blocks; raise "
                "--kv-memory or lower --max-model-len"
            )
        self._whole = BuddyAllocator(config.num_blocks)  # the pool when it is empty
        self._least = order_of(longest) if policy == "orca-max" else 0  # order of the smallest reservation there can be
        self._refused: tuple[Sequence, int, int] | None = None  # head of the queue, order and number of its runs

    @property
    def num_free_blocks(self) -> int:
        return self.buddy.num_free

    def check_fits(self, request: Request) -> None:
        length, n = self._length(request), request.params.num_sequences
        if self._whole.capacity(order_of(length)) >= n:
            return
        slots = length * self.block_size
        if self._whole.capacity(order_of(length)):
            raise RequestRejected(
                f"n={n} needs {n} reservations of {slots} slots, but the KV pool holds "
                f"{self._whole.capacity(order_of(length))}; ask for a smaller n",
                param="n",
            )
        raise RequestRejected(
            f"prompt ({len(request.prompt)} tokens) + max_tokens ({request.params.max_tokens}) needs {slots} KV slots "
            f"in one piece under policy {self.policy}, but the largest piece of the pool has "
            f"{self.block_size << self.buddy.largest}; ask for fewer tokens",
            param="max_tokens",
        )

    def can_admit(self, sequence: Sequence, prefix: list[CachedBlock], continuations: int, headroom: int) -> bool:
        order = order_of(self._length(sequence.request))
        has_room = self.buddy.capacity(order) >= continuations
        self._refused = None if has_room else (sequence, order, continuations)
        return has_room

    def _length(self, request: Request) -> int:
        prompt, output = len(request.prompt), request.params.max_tokens
        if self.policy == "orca-max":
            slots = self.max_model_len
        elif self.policy == "orca-pow2":
            slots = min(prompt + (1 << (output - 1).bit_length()), self.max_model_len)
        else:
            slots = prompt + output
        return 1 << order_of(blocks_for(slots, self.block_size))

    def _has_room(self, length: int, count: int) -> bool:
        return self.buddy.capacity(order_of(length)) >= count

    def _take(self, length: int) -> Run:
        return Run(self.buddy.take(order_of(length)), length)

    def _give(self, run: Run) -> None:
        self.buddy.give(run.start, order_of(run.length))

    def _free_parts(self) -> Iterable[Run]:
        return [Run(*piece) for piece in self.buddy.pieces()]

    def _external_blocks(self) -> int:
        if self._refused is not None:
            sequence, order, count = self._refused
            if not sequence.is_finished and sequence.seq_id not in self._reservations:
                capacity = self.buddy.capacity(order)
                if capacity < count:
                    return self.buddy.num_free - (capacity << order) if self._least else self.buddy.num_free
        return self.buddy.free_below(self._least)
