"""The endpoints that tell: models, tokenize, detokenize, health, metrics, and (on demand) the KV pool's contents."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import orjson
from aiohttp import web

from reference_engine.detokenizer import TokenTable
from reference_engine.engine import Engine
from reference_engine.request import Sequence
from reference_engine.server import metrics
from reference_engine.server.api import JSON, GenerationApi, ServedModel, read_json
from reference_engine.server.calls import parse_messages
from reference_engine.server.errors import ApiError
from reference_engine.server.fields import Fields, wrong
from reference_engine.server.loop import EngineLoop


def _json(document: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(document), content_type=JSON, status=status)


class InfoApi:
    """Read-only views of the server, its model and its engine."""

    def __init__(self, model: ServedModel, loop: EngineLoop, api: GenerationApi, tokens: TokenTable) -> None:
        self._model = model
        self._loop = loop
        self._api = api
        self._tokens = tokens

    async def models(self, request: web.Request) -> web.Response:
        return _json({"object": "list", "data": [self._describe()]})

    async def model(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name != self._model.name:
            raise ApiError(f"the model {name!r} is not served here", status=404, param="model", code="model_not_found")
        return _json(self._describe())

    async def version(self, request: web.Request) -> web.Response:
        return _json({"version": self._model.settings.get("version")})

    async def health(self, request: web.Request) -> web.Response:
        """200 while the engine runs, 503 with the reason once it has broken down."""
        if self._loop.failure is not None:
            raise ApiError(self._loop.failure, status=503)
        return _json({"status": "ok"})

    async def metrics(self, request: web.Request) -> web.Response:
        text = metrics.render(self._loop.stats, self._loop.times, self._model.cache_config)
        return web.Response(body=text, headers={"Content-Type": metrics.CONTENT_TYPE})

    async def tokenize(self, request: web.Request) -> web.Response:
        """``{prompt | messages, add_special_tokens}`` as in vLLM, or ``{content, add_special}`` as in llama.cpp."""
        fields = Fields(await read_json(request))
        if fields.get("messages") is not None:
            add_special = fields.boolean("add_special_tokens", False)
            add_prompt = fields.boolean("add_generation_prompt", True)
            text = self._api.render_chat(parse_messages(fields.get("messages")), add_generation_prompt=add_prompt)
        elif fields.get("content") is not None:
            add_special = fields.boolean("add_special", False)
            text = fields.string("content") or ""
        else:
            add_special = fields.boolean("add_special_tokens", True)
            prompt = fields.string("prompt")
            if prompt is None:
                raise wrong("prompt", "is missing; send prompt, messages or content")
            text = prompt
        tokens = await self._api.tokenize(text, add_special_tokens=add_special)
        answer: dict[str, Any] = {"tokens": tokens, "count": len(tokens), "max_model_len": self._model.max_model_len}
        if fields.boolean("return_token_strs"):
            answer["token_strs"] = [self._tokens.with_special(token).decode(errors="replace") for token in tokens]
        return _json(answer)

    async def detokenize(self, request: web.Request) -> web.Response:
        """``{tokens}`` to text, special tokens included; under vLLM's name ``prompt`` and llama.cpp's ``content``."""
        fields = Fields(await read_json(request))
        if fields.get("tokens") is None:
            raise wrong("tokens", "is missing; send a list of token ids")
        tokens = fields.integers("tokens")
        highest = 2**32 - 1
        if any(not 0 <= token <= highest for token in tokens):
            raise wrong("tokens", "holds an id that no vocabulary has")
        text = self._model.tokenizer.decode(list(tokens), skip_special_tokens=False)
        return _json({"prompt": text, "content": text})

    async def reset_prefix_cache(self, request: web.Request) -> web.Response:
        """Forget all cached prefixes between two steps; requests that run go on.  Named as in vLLM."""
        return _json({"forgotten_blocks": await self._loop.ask(lambda engine: engine.reset_cache())})

    async def debug_kv(self, request: web.Request) -> web.Response:
        """Block tables and the ledger, taken between two steps; ``?audit=1`` also checks every invariant."""
        audit = request.query.get("audit", "0") not in ("0", "", "false")
        return _json(await self._loop.ask(lambda engine: _dump(engine, audit=audit)))

    def _describe(self) -> dict[str, Any]:
        model = self._model
        return {
            "id": model.name,
            "object": "model",
            "created": model.created,
            "owned_by": "pagedbench",
            "max_model_len": model.max_model_len,
            "settings": model.settings,
        }


def _table(engine: Engine, sequence: Sequence) -> tuple[int, ...]:
    """Physical blocks of a sequence; none while it waits."""
    try:
        return engine.scheduler.kv.block_table(sequence.seq_id)
    except KeyError:
        return ()


def _reference_counts(engine: Engine) -> dict[str, int]:
    """References of every block that has some, under the paged policy."""
    pool = getattr(engine.scheduler.kv, "pool", None)
    counts = {} if pool is None else {str(block): pool.ref_count(block) for block in range(pool.num_blocks)}
    return {block: count for block, count in counts.items() if count}


def _dump(engine: Engine, *, audit: bool) -> dict[str, Any]:
    scheduler = engine.scheduler
    if audit:
        scheduler.audit()
    return {
        "block_size": engine.cache_config.block_size,
        "num_blocks": engine.cache_config.num_blocks,
        "ledger": asdict(scheduler.ledger()),
        "reference_counts": _reference_counts(engine),
        "audited": audit,
        "sequences": [
            {
                "seq_id": sequence.seq_id,
                "request_id": sequence.request.request_id,
                "index": sequence.index,
                "known": sequence.known,
                "computed": sequence.computed,
                "cached": sequence.cached,
                "preemptions": sequence.preemptions,
                "block_table": _table(engine, sequence),
            }
            for sequence in scheduler.sequences.values()
        ],
    }
