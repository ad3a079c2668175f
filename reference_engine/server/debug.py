"""``--debug-endpoints``: hooks that disturb the KV pool on purpose, for conformance cases that HTTP alone cannot run.

::

    GET  /debug/hooks                                     what there is, and the numbers of the model's KV
    POST /debug/poison     {value: "nan" | number, request_id?}   fill free blocks, or one running request's own blocks
    POST /debug/shuffle    {seed}                         permute the order in which free blocks are handed out
    POST /debug/hash_bits  {bits: 1..128 | null}          cut the prefix cache's digests, so that they collide
    POST /debug/attention  {shapes, seed}                 the engine's attention against naive attention

None of them may change an answer of a sound engine, but for the request whose blocks are poisoned.
All run on the engine's thread between two steps.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import orjson
import torch
from aiohttp import web

from reference_engine.attention.base import AttentionMetadata, empty_cache_layer
from reference_engine.attention.naive import NaiveAttention
from reference_engine.engine import Engine
from reference_engine.kv.manager import PagedKVManager
from reference_engine.kv.prefix_cache import DIGEST_BYTES, chain_hash
from reference_engine.runner import ModelRunner
from reference_engine.server.api import JSON, read_json
from reference_engine.server.errors import ApiError
from reference_engine.server.fields import Fields, wrong
from reference_engine.server.loop import EngineLoop

HOOKS = ("poison", "shuffle", "hash_bits", "attention")
MAX_SHAPES = 2_000


class DebugApi:
    """The hooks of one engine."""

    def __init__(self, loop: EngineLoop) -> None:
        self._loop = loop

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/debug/hooks", self.hooks),
            web.post("/debug/poison", self.poison),
            web.post("/debug/shuffle", self.shuffle),
            web.post("/debug/hash_bits", self.hash_bits),
            web.post("/debug/attention", self.attention),
        ]

    async def hooks(self, request: web.Request) -> web.Response:
        return _json({"hooks": HOOKS, "model": await self._loop.ask(describe_kv)})

    async def poison(self, request: web.Request) -> web.Response:
        fields = Fields(await read_json(request))
        value = fields.get("value")
        number = float("nan") if value in (None, "nan") else value
        if type(number) not in (int, float):
            raise wrong("value", "must be a number or 'nan'")
        request_id = fields.string("request_id")
        blocks = await self._loop.ask(lambda engine: poison_blocks(engine, float(number), request_id))
        return _json({"blocks": len(blocks)})

    async def shuffle(self, request: web.Request) -> web.Response:
        seed = Fields(await read_json(request)).integer("seed", 0, low=0)
        return _json({"blocks": await self._loop.ask(lambda engine: shuffle_free_blocks(engine, seed or 0))})

    async def hash_bits(self, request: web.Request) -> web.Response:
        bits = Fields(await read_json(request)).integer("bits", low=1, high=8 * DIGEST_BYTES)
        await self._loop.ask(lambda engine: cut_digests(engine, bits))
        return _json({"bits": bits})

    async def attention(self, request: web.Request) -> web.Response:
        fields = Fields(await read_json(request))
        shapes = fields.integer("shapes", 100, low=1, high=MAX_SHAPES) or 100
        seed = fields.integer("seed", 0, low=0) or 0
        return _json({"shapes": await self._loop.ask(lambda engine: attention_errors(engine, shapes, seed))})


def _json(document: Any) -> web.Response:
    return web.Response(body=orjson.dumps(document), content_type=JSON)


def describe_kv(engine: Engine) -> dict[str, int]:
    """Numbers that the bytes of a token follow from, and the bytes that the pool's tensors really hold."""
    runner = _runner(engine)
    config, first = runner.model_config, runner.layers[0]
    scale = first.key_scale
    return {
        "num_layers": config.num_layers,
        "num_kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "element_bytes": first.key.element_size(),
        "head_scale_bytes": scale.element_size() if scale is not None and scale.dim() == 3 else 0,
        "kv_bytes": sum(tensor.nbytes for layer in runner.layers for tensor in layer.tensors()),
    }


def poison_blocks(engine: Engine, value: float, request_id: str | None) -> list[int]:
    """Overwrite K and V of blocks that nobody may read: free ones whose content is not cached, or one request's own."""
    manager, layers = _manager(engine), _runner(engine).layers
    if request_id is None:
        blocks = [block for block in manager.pool.free_blocks() if not manager.pool.is_cached(block)]
    else:
        mine = [s.seq_id for s in engine.scheduler.sequences.values() if s.request.request_id == request_id]
        tables = [engine.scheduler.block_table(seq_id) for seq_id in mine]
        blocks = [
            b for table in tables for b in table if manager.pool.ref_count(b) == 1 and not manager.pool.is_cached(b)
        ]
    if blocks:
        index = torch.tensor(blocks, device=layers[0].key.device)
        for layer in layers:
            layer.fill(value, index)
    return blocks


def shuffle_free_blocks(engine: Engine, seed: int) -> int:
    """Hand out the free, uncached blocks in a random order from now on; returns how many there are."""
    pool = _manager(engine).pool
    taken = [pool.allocate() for _ in range(pool.num_free - pool.num_evictable)]
    random.Random(seed).shuffle(taken)
    for block in taken:
        pool.release(block)
    return len(taken)


def cut_digests(engine: Engine, bits: int | None) -> None:
    """Let digests of the prefix cache collide (``bits`` of them count), or make them whole again."""

    def short(parent: bytes, tokens: Sequence[int]) -> bytes:
        whole = int.from_bytes(chain_hash(parent, tokens), "big")
        assert bits is not None
        return (whole & ((1 << bits) - 1)).to_bytes(DIGEST_BYTES, "big")

    _manager(engine).cache.use_hash(chain_hash if bits is None else short)


def attention_errors(engine: Engine, count: int, seed: int) -> list[dict[str, Any]]:
    """Largest absolute errors of the engine's backend against naive fp32 attention on random ragged batches."""
    runner = _runner(engine)
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    config = runner.model_config
    group = config.num_heads // config.num_kv_heads
    rows = []
    for _ in range(count):
        kv_heads = rng.choice([1, 2, config.num_kv_heads])
        heads = kv_heads * rng.choice([1, 2, 4, group])
        head_dim = rng.choice([16, 64, config.head_dim])
        block_size = rng.choice([1, 8, 16, 32, runner.cache.block_size])
        lengths = [
            (context, rng.choice([1, 1, rng.randint(1, 9)])) for context in rng.sample(range(150), rng.randint(1, 4))
        ]
        window = rng.choice([None, None, rng.randint(1, 40)])
        error = one_shape(runner, generator, rng, (heads, kv_heads, head_dim, block_size), lengths, window)
        rows.append(
            {
                "heads": heads,
                "kv_heads": kv_heads,
                "head_dim": head_dim,
                "block_size": block_size,
                "sequences": lengths,
                "window": window,
                "error": error,
            }
        )
    return rows


def one_shape(
    runner: ModelRunner,
    generator: torch.Generator,
    rng: random.Random,
    shape: tuple[int, int, int, int],
    lengths: list[tuple[int, int]],
    window: int | None,
) -> float:
    """One ragged batch ((context, new) tokens a sequence) over permuted blocks of a pool whose free blocks hold NaN."""
    heads, kv_heads, head_dim, block_size = shape
    device, dtype = runner.device, runner.dtype
    needed = [-(-(context + new) // block_size) for context, new in lengths]
    order = rng.sample(range(sum(needed) + 3), sum(needed))
    cache = empty_cache_layer(sum(needed) + 3, block_size, kv_heads, head_dim, dtype, device)
    cache.key.fill_(float("nan"))
    cache.value.fill_(float("nan"))
    table = torch.full((len(lengths), max(needed)), -1, dtype=torch.int32)
    slots: list[int] = []
    for row, (context, new) in enumerate(lengths):
        blocks = [order.pop() for _ in range(needed[row])]
        table[row, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        places = [blocks[p // block_size] * block_size + p % block_size for p in range(context + new)]
        flat = torch.tensor(places[:context], dtype=torch.int64, device=device)
        for pool in (cache.key, cache.value):
            known = torch.randn((context, kv_heads, head_dim), generator=generator).to(device, dtype)
            pool.view(-1, kv_heads, head_dim).index_copy_(0, flat, known)
        slots += places[context:]
    starts = [0]
    for _, new in lengths:
        starts.append(starts[-1] + new)
    meta = AttentionMetadata(
        query_start_loc=torch.tensor(starts, dtype=torch.int32, device=device),
        seq_lens=torch.tensor([sum(one) for one in lengths], dtype=torch.int32, device=device),
        block_tables=table.to(device),
        slot_mapping=torch.tensor(slots, dtype=torch.int64, device=device),
        block_size=block_size,
        max_query_len=max(new for _, new in lengths),
        max_seq_len=max(map(sum, lengths)),
        query_lens=tuple(new for _, new in lengths),
        seq_lens_list=tuple(map(sum, lengths)),
    )
    query = torch.randn((starts[-1], heads, head_dim), generator=generator).to(device, dtype)
    key, value = (
        torch.randn((starts[-1], kv_heads, head_dim), generator=generator).to(device, dtype) for _ in range(2)
    )
    with torch.inference_mode():
        results = [
            backend.forward(query, key, value, cache, meta, scale=head_dim**-0.5, window=window).float()
            for backend in (runner.backend, NaiveAttention())
        ]
    error = (results[0] - results[1]).abs().max().item()
    return error if error == error else float("inf")  # NaN is worse than any number


def _manager(engine: Engine) -> PagedKVManager:
    manager = engine.scheduler.kv
    if not isinstance(manager, PagedKVManager):
        raise ApiError("this hook needs the paged KV policy")
    return manager


def _runner(engine: Engine) -> ModelRunner:
    runner = engine.runner
    if not isinstance(runner, ModelRunner):
        raise ApiError("this hook needs the model runner")
    return runner
