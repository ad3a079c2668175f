"""Frozen configuration of the reference engine.  No torch: the scheduler and all below it import this."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

BLOCK_SIZE_RANGE = (1, 256)
DEFAULT_WATERMARK = 0.01

KVPolicy = Literal["paged", "contiguous", "static", "orca-max", "orca-pow2", "orca-oracle"]
QueueOrder = Literal["fcfs", "priority"]
KVType = Literal["auto", "float32", "bfloat16", "float16", "fp8_e4m3", "int8"]
Preemption = Literal["recompute", "swap", "auto"]
PrefixIndex = Literal["hash", "radix"]


class ConfigError(ValueError):
    """A setting that cannot work.  The message names the setting and what to do; it is shown to the user as it is."""


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """RoPE frequency scaling as Hugging Face configs state it (``rope_scaling`` / ``rope_parameters``).

    ``kind`` is one of ``linear``, ``dynamic``, ``llama3``, ``yarn``, ``longrope``; ``parameters`` holds the remaining
    keys of the config entry under their own names.
    """

    kind: str
    parameters: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of one Llama-family model.  Sizes are element counts."""

    family: str  # "llama", "mistral", "qwen2", "qwen3" (SmolLM2 is "llama")
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int  # query heads, Hq
    num_kv_heads: int  # key/value heads, Hkv; Hq % Hkv == 0
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    # One entry a layer: the number of most recent positions (itself included) a query may attend, None = all of them.
    sliding_windows: tuple[int | None, ...] = ()
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def window(self, layer: int) -> int | None:
        """Sliding window of ``layer`` in tokens, or None for full attention."""
        return self.sliding_windows[layer] if self.sliding_windows else None

    @property
    def kv_window(self) -> int | None:
        """Most recent positions whose K/V some layer can still read; None if a layer attends all of them."""
        widths = [self.window(layer) for layer in range(self.num_layers)]
        known = [width for width in widths if width is not None]
        return max(known) if known and len(known) == len(widths) else None

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """Bytes of K and V that one token occupies over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * element_bytes


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """The KV pool: ``num_blocks`` physical blocks of ``block_size`` token slots each."""

    num_blocks: int
    block_size: int = 16
    prefix_caching: bool = True
    num_host_blocks: int = 0  # blocks in host memory that keep the K/V of sequences preempted by swap
    prefix_index: PrefixIndex = "hash"  # how cached prefixes are found
    # Positions a query attends, itself included, where every layer has a window: blocks behind the largest are freed.
    window: int | None = None

    def __post_init__(self) -> None:
        low, high = BLOCK_SIZE_RANGE
        if not low <= self.block_size <= high:
            raise ConfigError(f"block size {self.block_size} is outside {low}..{high}; choose one inside")
        if self.num_host_blocks < 0:
            raise ConfigError(f"the host pool cannot have {self.num_host_blocks} blocks; raise --swap-space")
        if self.num_blocks < 1:
            raise ConfigError(f"a KV pool needs at least 1 block, not {self.num_blocks}; raise --kv-memory")

    @property
    def num_slots(self) -> int:
        """Token slots in the whole pool."""
        return self.num_blocks * self.block_size


@dataclass(frozen=True, slots=True)
class PreemptionCost:
    """What the two ways to preempt cost on this machine, for ``preemption = "auto"``.  Any one unit of time.

    ``auto`` swaps a victim iff ``2 * blocks * swap_block < tokens * recompute_token``: each of its blocks is copied out
    and in, against computing again the tokens that nobody else keeps in the cache.
    """

    recompute_token: float
    swap_block: float  # one block, one way


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of one engine step and of the queue before it."""

    max_model_len: int  # tokens, prompt + output of one sequence
    max_num_seqs: int = 64  # sequences that may run at once
    max_num_batched_tokens: int = 2048  # the one token budget of a step: prefill chunks and decodes together
    policy: KVPolicy = "paged"
    order: QueueOrder = "fcfs"
    max_waiting: int = 1024  # sequences queued but not running; one more is refused (HTTP 429)
    # Share of the pool kept free when a waiting sequence is admitted, so that running ones can grow (no thrash).
    watermark: float = DEFAULT_WATERMARK
    preemption: Preemption = "recompute"
    preemption_cost: PreemptionCost | None = None  # None: auto takes swap whenever the host pool has room

    def __post_init__(self) -> None:
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "max_waiting"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0.0 <= self.watermark < 1.0:
            raise ConfigError(f"watermark must be in [0, 1), not {self.watermark}")
