"""Ask a running server who it is and what its API can do."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from harness.engines.asker import Asker, Reply
from harness.engines.capabilities import ApiProbe, Capabilities
from harness.engines.errors import ExpositionError, UnreachableError
from harness.engines.installed import installed_version
from harness.engines.launch import RunningEngine
from harness.engines.metrics import kind_of, parse_exposition
from harness.engines.recipe import Recipe
from harness.results.schema import EngineInfo

OTHER_METRICS = "/prometheus/metrics"  # TensorRT-LLM's, whose /metrics is something else
IDENTITY_PATHS = (
    "/v1/models",
    "/version",
    "/metrics",
    OTHER_METRICS,
    "/props",
    "/slots",
    "/info",
    "/server_info",
    "/openapi.json",
)
OWNERS = {"vllm": "vllm", "llamacpp": "llama.cpp", "sglang": "sglang", "pagedbench": "pagedbench"}
FIRST_S, SECOND_S = 5.0, 20.0  # limits of a question, and of a second asking of those that went unanswered
SETTING_METRICS = ("kv_block_size", "kv_slots_reserved", "kv_pool_bytes")


class Probe(BaseModel):
    """Who the engine is and what it can do."""

    model_config = ConfigDict(extra="forbid")

    info: EngineInfo
    capabilities: Capabilities


async def probe(
    url: str,
    api_key: str | None = None,
    model: str | None = None,
    *,
    name: str | None = None,
    fallback_model: str | None = None,
    generate: bool = True,
    timeout_s: float = 60.0,
) -> Probe:
    """Probe the server at ``url`` (its root, or with ``/v1``).

    ``model`` is the id to ask for, ``fallback_model`` the one where the server lists none.  With ``generate`` some ten
    requests of a few tokens find out the capabilities; without it only what costs the engine nothing.  ``timeout_s``
    is for each of them.
    Raises UnreachableError when nothing speaks HTTP there; whatever a server answers, nothing else is raised.
    """
    async with Asker(url, api_key) as asker:
        replies = await identify(asker)
        if all(reply.status is None for reply in replies.values()):
            raise UnreachableError(f"no HTTP server answers at {asker.url}: {replies['/v1/models'].error}")
        entry = model_entry(replies["/v1/models"], model)
        model = model or text_of(entry, "id") or text_of(replies["/info"].mapping(), "model_id") or fallback_model
        api = ApiProbe(asker, model, timeout_s)
        note_failures(replies, api.found)
        metrics = replies["/metrics"]
        if kind_of(metrics.text) is None and kind_of(replies[OTHER_METRICS].text) is not None:
            metrics, api.found.metrics_path = replies[OTHER_METRICS], OTHER_METRICS
            replies["/metrics"] = metrics
        values = read_metrics(metrics, api.found)
        api.found.slots = isinstance(replies["/slots"].json(), list) and replies["/slots"].ok
        if generate:
            await api.run()
        settings: dict[str, Any] = {key: values[key] for key in SETTING_METRICS if key in values}
        settings |= slot_settings(replies["/props"])
        settings |= inner(entry, "settings")
        info = EngineInfo(
            name=name or asker.url,
            url=asker.url,
            kind=find_kind(replies, entry),
            version=find_version(replies),
            model=model or api.answered_model,
            max_model_len=find_max_model_len(replies, entry),
            dtype=find_dtype(replies, entry),
            settings=settings,
        )
    return Probe(info=info, capabilities=api.found)


async def identify(asker: Asker) -> dict[str, Reply]:
    """Replies of all IDENTITY_PATHS.

    What a busy engine did not answer in time beside the others is asked once more: it must not be taken for absent.
    """
    replies = await ask_all(asker, IDENTITY_PATHS, FIRST_S)
    late = [path for path, reply in replies.items() if reply.late]
    return replies | await ask_all(asker, late, SECOND_S) if len(late) < len(replies) else replies


async def ask_all(asker: Asker, paths: Sequence[str], limit_s: float) -> dict[str, Reply]:
    replies = await asyncio.gather(*(asker.get(path, limit_s) for path in paths))
    return dict(zip(paths, replies, strict=True))


async def probe_launched(
    engine: RunningEngine, recipe: Recipe, *, generate: bool = True, timeout_s: float = 60.0
) -> Probe:
    """Probe an engine that we launched, and add what its recipe knows: installed version, command's settings."""
    values = engine.settings
    found = await probe(
        engine.url,
        name=engine.name,
        fallback_model=str(values["model"]) if "model" in values else None,
        generate=generate,
        timeout_s=timeout_s,
    )
    version = await asyncio.to_thread(installed_version, recipe, values)
    update = {
        "recipe": recipe.name,
        "kind": found.info.kind or recipe.kind,
        "version": version or found.info.version,
        "dtype": found.info.dtype or (str(values["dtype"]) if "dtype" in values else None),
        "settings": {**values, **found.info.settings},
    }
    return Probe(info=found.info.model_copy(update=update), capabilities=found.capabilities)


def text_of(data: Mapping[str, Any], key: str) -> str | None:
    value = data.get(key)
    return value if isinstance(value, str) and value else None


def length_of(data: Mapping[str, Any], *keys: str) -> int | None:
    for key in keys:
        value = data.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def inner(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def model_entry(reply: Reply, wanted: str | None) -> dict[str, Any]:
    """The entry of /v1/models for ``wanted``, else the first; empty when the answer is not a list of models."""
    data = reply.mapping().get("data")
    entries = [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
    matching = [entry for entry in entries if wanted is not None and entry.get("id") == wanted]
    return (matching or entries or [{}])[0]


def note_failures(replies: Mapping[str, Reply], found: Capabilities) -> None:
    """Answers that are neither a success nor an honest 4xx."""
    for path, reply in replies.items():
        if reply.status is None:
            found.notes.append(f"GET {path}: {reply.error}")
        elif reply.status >= 500:
            found.notes.append(f"GET {path}: HTTP {reply.status}")
        elif path == "/v1/models" and reply.ok and not isinstance(reply.mapping().get("data"), list):
            found.notes.append("GET /v1/models: HTTP 200, but no list of models")


def read_metrics(reply: Reply, found: Capabilities) -> dict[str, float]:
    """Values of our vocabulary from /metrics; a body that is no exposition gives none and a note."""
    if not reply.ok:
        return {}
    try:
        values = parse_exposition(reply.text)
    except ExpositionError as error:
        found.notes.append(f"GET /metrics: {error}")
        return {}
    found.metric_names = sorted(values)
    found.metrics = bool(values)
    return values


def find_kind(replies: Mapping[str, Reply], entry: Mapping[str, Any]) -> str | None:
    """Kind of engine by the first evidence that speaks: metric names, model owner, server header, own endpoints."""
    metrics = replies["/metrics"]
    if metrics.ok and (kind := kind_of(metrics.text)):
        return kind
    if kind := OWNERS.get(str(entry.get("owned_by", "")).lower()):
        return kind
    server = replies["/v1/models"].headers.get("server", "")
    if server.lower().startswith("llama.cpp"):
        return "llama.cpp"
    if "max_total_num_tokens" in str(replies["/server_info"].mapping()):
        return "sglang"
    if "max_concurrent_requests" in replies["/info"].mapping():
        return "tgi"
    if "/load_model" in inner(replies["/openapi.json"].mapping(), "paths"):
        return "transformers"
    return None


def find_version(replies: Mapping[str, Reply]) -> str | None:
    return (
        text_of(replies["/version"].mapping(), "version")
        or text_of(replies["/server_info"].mapping(), "version")
        or text_of(replies["/info"].mapping(), "version")
        or text_of(replies["/props"].mapping(), "build_info")
    )


def find_max_model_len(replies: Mapping[str, Reply], entry: Mapping[str, Any]) -> int | None:
    """Tokens of prompt and output that one request may have."""
    return (
        length_of(entry, "max_model_len", "context_length")
        or length_of(inner(replies["/props"].mapping(), "default_generation_settings"), "n_ctx")
        or length_of(inner(entry, "meta"), "n_ctx")
        or length_of(replies["/info"].mapping(), "max_total_tokens")
    )


def find_dtype(replies: Mapping[str, Reply], entry: Mapping[str, Any]) -> str | None:
    return (
        text_of(inner(entry, "settings"), "dtype")
        or text_of(inner(entry, "meta"), "ftype")
        or text_of(replies["/info"].mapping(), "model_dtype")
    )


def slot_settings(reply: Reply) -> dict[str, Any]:
    """llama.cpp: how many sequences it holds at once and how many tokens each may have."""
    data = reply.mapping()
    slots, context = length_of(data, "total_slots"), length_of(inner(data, "default_generation_settings"), "n_ctx")
    return {"max_num_seqs": slots, "slot_tokens": context} if slots and context else {}
