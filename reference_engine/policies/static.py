"""``static``: batches as before continuous batching (FasterTransformer's, in the PagedAttention paper).

::

    batch 1   a ######.....      b ###########      c ####.......      # computes   . has ended, its run is kept
    batch 2                                                            is formed when b, the longest, has ended

A batch takes sequences, as many as there are runs of ``max_model_len`` slots, as long as they come without a gap: once its
newest member has computed its prompt and a token more, the batch is closed until all of its members have ended.
"""

from __future__ import annotations

from collections.abc import Iterable

from reference_engine.config import CacheConfig
from reference_engine.kv.prefix_cache import CachedBlock
from reference_engine.policies.contiguous import ContiguousKVManager
from reference_engine.policies.reserving import Run
from reference_engine.request import Sequence


class StaticKVManager(ContiguousKVManager):
    """Equal runs that come free only together."""

    name = "static"

    def __init__(self, config: CacheConfig, max_model_len: int) -> None:
        super().__init__(config, max_model_len)
        self._ended: list[Run] = []
        self._newest: Sequence | None = None

    @property
    def is_closed(self) -> bool:
        """Whether the batch takes no more sequences."""
        newest = self._newest
        if newest is None or not self._reservations:
            return False
        return newest.is_finished or newest.computed > newest.prompt_len

    def can_admit(self, sequence: Sequence, prefix: list[CachedBlock], continuations: int, headroom: int) -> bool:
        return not self.is_closed and super().can_admit(sequence, prefix, continuations, headroom)

    def admit(self, sequence: Sequence, prefix: list[CachedBlock], continuations: int) -> int:
        self._newest = sequence
        return super().admit(sequence, prefix, continuations)

    def free(self, seq_id: int) -> None:
        super().free(seq_id)
        if not self._reservations:
            for run in reversed(self._ended):
                self._free_runs.append(run)
            self._ended = []

    def _give(self, run: Run) -> None:
        self._ended.append(run)

    def _idle_runs(self) -> Iterable[Run]:
        return self._ended
