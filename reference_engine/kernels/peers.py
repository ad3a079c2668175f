"""Other kernels that answer the same question, where their packages can be imported.

A peer starts from what our kernel starts from, the paged cache; one that needs contiguous K/V pays for its gather.  The one
exception is named: ``sdpa, K/V contiguous`` gets its K/V for free and shows what an unpaged cache would allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from reference_engine.kernels.cases import Case, Problem

Call = Callable[[], Tensor]

# Not a contest: its K/V were gathered before the clock started.
UNPAGED = "sdpa, K/V contiguous"


# flex_attention compiles for tens of seconds a shape: these are worth it.
FLEX_CASES = frozenset({"decode 64 x 2048", "decode 1 x 32768", "prefill 4 x 2048"})


def peers(problem: Problem) -> Iterator[tuple[str, Call | str]]:
    """(name, call) for each peer that takes the case, (name, reason) for each that cannot."""
    for name, make in (
        (UNPAGED, partial(_sdpa, paged=False)),
        ("sdpa after gather", partial(_sdpa, paged=True)),
        ("flex_attention after gather", _flex),
        ("flashinfer", _flashinfer),
        ("flash-attn", _flash_attn),
    ):
        try:
            yield name, make(problem)
        except ImportError as error:
            yield name, f"not installed ({error.name})"
        except (NotImplementedError, RuntimeError, ValueError) as error:
            yield name, f"cannot: {str(error).splitlines()[0][:160]}"


def is_uniform(case: Case) -> bool:
    """All sequences alike, without window or soft cap: what the contiguous peers can batch."""
    same = len(set(case.query_lens)) == 1 and len(set(case.seq_lens)) == 1
    return same and case.window is None and case.soft_cap is None


def _grouped(problem: Problem) -> tuple[Tensor, int]:
    """Query as ``[B, Hq, q, D]`` and its length; raises NotImplementedError on ragged cases."""
    case = problem.case
    if not is_uniform(case):
        raise NotImplementedError("takes uniform batches without window and soft cap")
    batch, length = len(case.query_lens), case.query_lens[0]
    if length not in (1, case.seq_lens[0]):
        raise NotImplementedError("takes decode or whole prompts")
    return problem.query.view(batch, length, case.num_heads, case.head_dim).transpose(1, 2), length


def _gather(problem: Problem) -> tuple[Tensor, Tensor]:
    """K and V as ``[B, Hkv, seq_len, D]``, read through the block tables."""
    case, meta = problem.case, problem.meta
    batch, length = len(case.seq_lens), case.seq_lens[0]
    flat = meta.block_tables.reshape(-1)
    parts = []
    for pool in (problem.cache.key, problem.cache.value):
        rows = pool.index_select(0, flat).view(batch, -1, case.num_kv_heads, case.head_dim)
        parts.append(rows[:, :length].transpose(1, 2))
    return parts[0], parts[1]


def _sdpa(problem: Problem, *, paged: bool) -> Call:
    query, length = _grouped(problem)
    case = problem.case
    batch, group = len(case.query_lens), case.num_heads // case.num_kv_heads
    ready = None if paged else tuple(part.contiguous() for part in _gather(problem))

    def attend(backend: SDPBackend) -> Tensor:
        key, value = ready if ready is not None else _gather(problem)
        with sdpa_kernel(backend):
            if length == 1:
                # Decode: the group as query length, so that K/V heads need not be repeated.
                folded = query.reshape(batch, case.num_kv_heads, group, case.head_dim)
                out = scaled_dot_product_attention(folded, key, value, scale=case.scale)
                return out.reshape(batch, case.num_heads, case.head_dim)
            out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=case.scale, enable_gqa=True)
            return out.transpose(1, 2).reshape(-1, case.num_heads, case.head_dim)

    return _fastest([partial(attend, backend) for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)])


def _fastest(calls: list[Call]) -> Call:
    """The fastest of ``calls`` that run at all; raises the last one's error if none does."""
    from reference_engine.kernels.timing import time_calls

    found: list[tuple[float, Call]] = []
    failure: RuntimeError | None = None
    for call in calls:
        try:
            call()
            found.append((time_calls(call, samples=5, calls=3, graph=False).median_us, call))
        except RuntimeError as error:
            failure = error
    if not found:
        raise failure or RuntimeError("nothing to run")
    return min(found, key=lambda pair: pair[0])[1]


_compiled: dict[str, Any] = {}


def _flex(problem: Problem) -> Call:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if not torch.cuda.is_available():
        raise NotImplementedError("is compiled on a GPU only")
    query, length = _grouped(problem)
    case = problem.case
    if case.name not in FLEX_CASES:
        raise NotImplementedError("not compiled for this shape")
    run = _compiled.setdefault("flex", torch.compile(flex_attention))
    mask = None
    if length > 1:

        def causal(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
            return row >= column

        mask = create_block_mask(causal, None, None, length, length, device=str(query.device))
    query = query.contiguous()

    def call() -> Tensor:
        key, value = (part.contiguous() for part in _gather(problem))
        out = run(query, key, value, block_mask=mask, scale=case.scale, enable_gqa=True)
        return out.transpose(1, 2).reshape(-1, case.num_heads, case.head_dim)

    call()
    return call


def _flashinfer(problem: Problem) -> Call:
    import flashinfer  # type: ignore[import-not-found]

    case, meta = problem.case, problem.meta
    if case.dtype == torch.float32:
        raise NotImplementedError("16-bit types only")
    pages = [-(-length // case.page) for length in case.seq_lens]
    device = problem.query.device
    tables = meta.block_tables.cpu()
    indices = torch.cat([tables[i, :count] for i, count in enumerate(pages)]).to(device)
    starts = torch.tensor([0, *pages], dtype=torch.int32).cumsum(0).to(device=device, dtype=torch.int32)
    last = torch.tensor([(length - 1) % case.page + 1 for length in case.seq_lens], dtype=torch.int32, device=device)
    workspace = torch.empty(256 << 20, dtype=torch.uint8, device=device)
    shape = (case.num_heads, case.num_kv_heads, case.head_dim, case.page)
    common: dict[str, Any] = {
        "q_data_type": case.dtype,
        "window_left": -1 if case.window is None else case.window - 1,
        "logits_soft_cap": case.soft_cap or 0.0,
        "sm_scale": case.scale,
    }
    if max(case.query_lens) == 1:
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
        wrapper.plan(starts, indices, last, *shape, **common)
    else:
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
        wrapper.plan(meta.query_start_loc, starts, indices, last, *shape, causal=True, **common)
    pools = (problem.cache.key, problem.cache.value)
    return lambda: wrapper.run(problem.query, pools)


def _flash_attn(problem: Problem) -> Call:
    from flash_attn import flash_attn_with_kvcache  # type: ignore[import-not-found]

    query, length = _grouped(problem)
    case, meta = problem.case, problem.meta
    if case.page % 256:
        raise NotImplementedError("takes pages of 256 only")
    if length != 1 and case.seq_lens[0] != length:
        raise NotImplementedError("takes decode or whole prompts")
    rows = query.transpose(1, 2).contiguous()

    def call() -> Tensor:
        out = flash_attn_with_kvcache(
            rows,
            problem.cache.key,
            problem.cache.value,
            cache_seqlens=meta.seq_lens,
            block_table=meta.block_tables,
            softmax_scale=case.scale,
            causal=True,
        )
        flat: Tensor = out.reshape(-1, case.num_heads, case.head_dim)
        return flat

    call()
    return call
