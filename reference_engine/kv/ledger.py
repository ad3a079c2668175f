"""The memory ledger: what each KV slot of the pool is used for, after every step.

Every slot carries exactly one of six words, so they add up to the pool::

    token_states + reserved + internal + external + cached + free == total

======================  ==============================================  ================================================
word                    paged                                           contiguous, static, orca-*
======================  ==============================================  ================================================
token_states            K/V of a token some sequence can still attend   the same
                        (a shared slot counts once)
reserved                always 0: nothing is kept for the future        slots of a reservation up to prompt + max_tokens
                                                                        that are not filled yet
internal                unfilled slots of held blocks: a sequence's     slots of a reservation beyond prompt +
                        last block, blocks of the step in flight        max_tokens, rounding included; runs of sequences
                                                                        that ended before their static batch
external                always 0: any free block serves any sequence    free slots that cannot hold one more reservation;
                                                                        orca-*: nor the sequence next in line
cached                  slots of blocks without a holder that the       always 0
                        prefix cache can still find
free                    all other slots without a holder                the same
======================  ==============================================  ================================================

(The words of Figure 2 of the PagedAttention paper, arXiv 2309.06180, plus ``cached``.)  How many of the reserved
slots a request will really use is unknown while it runs, so ``reserved`` counts what it asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from reference_engine.kv.block_pool import AuditError


@dataclass(frozen=True, slots=True)
class LedgerSnapshot:
    """The ledger at one moment.  All fields are token slots."""

    total: int  # the whole pool; DESIGN's word for it is `reserved` (reserved from the device)
    token_states: int
    reserved: int
    internal: int
    external: int
    cached: int
    free: int
    logical: int  # token states summed over sequences: a slot shared by k sequences counts k times

    @property
    def allocated(self) -> int:
        """Slots with a holder."""
        return self.token_states + self.reserved + self.internal

    @property
    def live(self) -> int:
        """Slots whose token can still be attended; a shared one counts once."""
        return self.token_states

    @property
    def evictable(self) -> int:
        """Slots that keep cached content and have no holder."""
        return self.cached

    @property
    def utilisation(self) -> float:
        """live / whole pool."""
        return self.token_states / self.total

    @property
    def internal_fragmentation(self) -> float:
        """(allocated - live) / allocated; 0 when nothing is allocated."""
        return (self.allocated - self.live) / self.allocated if self.allocated else 0.0

    @property
    def sharing_factor(self) -> float:
        """logical / live; 1 when nothing is live."""
        return self.logical / self.token_states if self.token_states else 1.0

    def gauges(self) -> dict[str, int]:
        """The five quantities under the names used in metrics, results and charts."""
        return {
            "reserved": self.total,
            "allocated": self.allocated,
            "live": self.live,
            "evictable": self.evictable,
            "logical": self.logical,
        }

    def check(self) -> None:
        """Raise AuditError unless every slot carries exactly one word."""
        parts = (self.token_states, self.reserved, self.internal, self.external, self.cached, self.free)
        if sum(parts) != self.total or min(parts) < 0:
            raise AuditError(f"ledger does not add up to {self.total} slots: {self}")
        if self.logical < self.token_states:
            raise AuditError(f"ledger counts {self.token_states} live slots but only {self.logical} logical ones")


class LedgerTotals:
    """Sums of every word over all steps so far: exact means over steps, however rarely somebody looks."""

    def __init__(self) -> None:
        self.steps = 0
        self.last: LedgerSnapshot | None = None
        self._sums = dict.fromkeys((f.name for f in fields(LedgerSnapshot)), 0)

    def tick(self, snapshot: LedgerSnapshot) -> None:
        """Add one step."""
        self.steps += 1
        self.last = snapshot
        sums = self._sums
        for name in sums:
            sums[name] += getattr(snapshot, name)

    def mean(self, name: str) -> float | None:
        """Mean of a ledger word in slots over all steps; None before the first step."""
        return self._sums[name] / self.steps if self.steps else None
