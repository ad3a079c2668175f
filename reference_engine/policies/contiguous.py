"""``contiguous``: what systems before PagedAttention did.

Every sequence reserves ``max_model_len`` slots in one contiguous run when it is admitted.  All reservations have the
same size, so the pool is cut into equal runs of blocks once::

    pool   [ run 0 .......... ][ run 1 .......... ] ... [ rest: too small for a run = external ]
"""

from __future__ import annotations

from collections.abc import Iterable

from reference_engine.config import CacheConfig, ConfigError
from reference_engine.kv.contract import blocks_for
from reference_engine.policies.reserving import ReservingKVManager, Run
from reference_engine.request import Request, RequestRejected


class ContiguousKVManager(ReservingKVManager):
    """Equal runs, whatever a request asks for."""

    name = "contiguous"

    def __init__(self, config: CacheConfig, max_model_len: int) -> None:
        super().__init__(config)
        self.run_blocks = blocks_for(max_model_len, config.block_size)
        self.num_runs = config.num_blocks // self.run_blocks
        if not self.num_runs:
            raise ConfigError(
                f"policy {self.name} reserves {max_model_len} tokens ({self.run_blocks} blocks of {config.block_size}) "
                f"for each sequence, but the KV pool has {config.num_blocks} blocks; raise --kv-memory or lower "
                "--max-model-len"
            )
        starts = range((self.num_runs - 1) * self.run_blocks, -1, -self.run_blocks)
        self._free_runs = [Run(start, self.run_blocks) for start in starts]  # a stack, lowest run on top

    @property
    def num_free_blocks(self) -> int:
        return len(self._free_runs) * self.run_blocks

    def check_fits(self, request: Request) -> None:
        needed = request.params.num_sequences
        if needed > self.num_runs:
            raise RequestRejected(
                f"n={needed} needs {needed} reservations, but the KV pool holds {self.num_runs}; ask for a smaller n",
                param="n",
            )

    def _length(self, request: Request) -> int:
        return self.run_blocks

    def _has_room(self, length: int, count: int) -> bool:
        return count <= len(self._free_runs)

    def _take(self, length: int) -> Run:
        return self._free_runs.pop()

    def _give(self, run: Run) -> None:
        self._free_runs.append(run)

    def _free_parts(self) -> Iterable[Run]:
        rest = self._external_blocks()
        return [*self._free_runs, *([Run(self.num_blocks - rest, rest)] if rest else [])]

    def _external_blocks(self) -> int:
        return self.num_blocks - self.num_runs * self.run_blocks
