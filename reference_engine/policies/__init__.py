"""Memory policies on the same scheduler and runner, one a file.

================  ======================================================================================================
``paged``         PagedAttention: blocks on demand (``reference_engine.kv.manager``)
``contiguous``    one run of ``max_model_len`` slots for every sequence, taken when it is admitted
``static``        the same runs, and no continuous batching: a batch ends with its last sequence
``orca-max``      runs of ``max_model_len`` slots from a buddy allocator
``orca-pow2``     runs for the prompt and the next power of two of ``max_tokens``, from a buddy allocator
``orca-oracle``   runs for the prompt and ``max_tokens``, from a buddy allocator
================  ======================================================================================================

The last four are the baselines of the PagedAttention paper (arXiv 2309.06180, section 6.1): FasterTransformer's batching
and Orca with three ways to guess how much memory a request will need.  They share nothing and never preempt, because
what a sequence may need is its own from the start.
"""

from __future__ import annotations

from reference_engine.config import CacheConfig, SchedulerConfig
from reference_engine.kv.contract import KVManager
from reference_engine.kv.manager import PagedKVManager
from reference_engine.policies.contiguous import ContiguousKVManager
from reference_engine.policies.orca import OrcaKVManager
from reference_engine.policies.static import StaticKVManager

__all__ = ["ContiguousKVManager", "OrcaKVManager", "StaticKVManager", "make_manager"]


def make_manager(scheduler: SchedulerConfig, cache: CacheConfig) -> KVManager:
    """The manager of ``scheduler.policy``.  Raises ConfigError if the pool is too small for the policy."""
    if scheduler.policy == "contiguous":
        return ContiguousKVManager(cache, scheduler.max_model_len)
    if scheduler.policy == "static":
        return StaticKVManager(cache, scheduler.max_model_len)
    if scheduler.policy == "paged":
        return PagedKVManager(cache, max_chunk=scheduler.max_num_batched_tokens)
    return OrcaKVManager(cache, scheduler.max_model_len, scheduler.policy)
