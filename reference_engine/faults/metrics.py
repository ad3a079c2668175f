"""Faults of metrics, memory and the integrity of a measured run: F59 to F64, F66."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import torch
from aiohttp import web

from reference_engine.attention.kv_format import KVFormat
from reference_engine.config import ModelConfig
from reference_engine.faults.lab import Lab
from reference_engine.faults.registry import fault
from reference_engine.faults.tools import on_logits, on_request, sampled_rows
from reference_engine.outputs import EngineStats
from reference_engine.plan import StepPlan
from reference_engine.server.api import GenerationApi
from reference_engine.server.wire import Wire


def _on_stats(lab: Lab, change: Callable[[dict[str, float]], None]) -> None:
    def make(stats: Callable[[], EngineStats]) -> Callable[[], EngineStats]:
        def faulty() -> EngineStats:
            values = dict(stats().values)
            if lab.fires():
                change(values)
            return EngineStats(values)

        return faulty

    lab.wrap(lab.engine, "stats", make)


@fault(
    "F59",
    "the KV gauge counts evictable blocks as used, is frozen (how=frozen), or exceeds 1 (how=over)",
    source="exporters whose 'usage' differs in meaning; sgl-project/sglang#35270",
    trigger="any scrape; the default after a request has left cached blocks",
    how="evictable",
)
def kv_gauge_wrong(lab: Lab) -> None:
    def change(values: dict[str, float]) -> None:
        how = lab.value("how")
        if how == "frozen":
            values["kv_usage"] = 0.25
        elif how == "over":
            values["kv_usage"] = values["kv_usage"] * 100
        else:
            used = values["kv_slots_allocated"] + values["kv_slots_evictable"]
            values["kv_usage"] = used / values["kv_slots_reserved"]

    _on_stats(lab, change)


@fault(
    "F60",
    "the counter of generated tokens is 10 % too high, or falls (how=falling)",
    source="no single report chosen",
    trigger="any scrape after some tokens",
    how="wrong",
)
def counters_wrong(lab: Lab) -> None:
    def change(values: dict[str, float]) -> None:
        count = values["generation_tokens_total"]
        if lab.value("how") == "falling":
            values["generation_tokens_total"] = count % 97
        else:
            values["generation_tokens_total"] = int(count * 1.1 + 0.5)

    _on_stats(lab, change)


@fault(
    "F61",
    "cached_tokens is over-reported: all of the prompt but its last token",
    source="sgl-project/sglang#11900",
    trigger="any request",
)
def cached_over_reported(lab: Lab) -> None:
    def make(usage: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
        def faulty(self: Any) -> dict[str, Any]:
            counts = usage(self)
            if lab.fires():
                counts["prompt_tokens_details"]["cached_tokens"] = max(0, counts["prompt_tokens"] - 1)
            return counts

        return faulty

    lab.wrap(Wire, "usage", make)


@fault(
    "F62",
    "whole answers are cached: the same call gets the same bytes again, sampled or not",
    source="what MLPerf's TEST04 looks for",
    trigger="a call that is sent twice without streaming",
)
def answers_cached(lab: Lab) -> None:
    kept: dict[Any, Any] = {}

    def make(answer: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def faulty(self: Any, request: web.Request, call: Any) -> Any:
            if call.stream:
                return await answer(self, request, call)
            if call in kept and lab.fires():
                return web.Response(body=kept[call], content_type="application/json")
            response = await answer(self, request, call)
            kept[call] = response.body
            return response

        return faulty

    lab.wrap(GenerationApi, "_answer", make)


@fault(
    "F63",
    "answers are shorter under load",
    source="what MLPerf's TEST09 looks for",
    trigger="at least `load` requests open",
    load=6,
    share=0.8,
)
def shorter_under_load(lab: Lab) -> None:
    def edit(request: Any) -> None:
        limit = request.params.max_tokens
        shorter = max(1, int(limit * lab.number("share")))
        if shorter < limit and lab.scheduler.num_unfinished >= int(lab.value("load")) and lab.fires():
            request.params = replace(request.params, max_tokens=shorter)

    on_request(lab, edit)


@fault(
    "F64",
    "a share of the requests is served by another model",
    source="Anthropic, post-mortem of September 2025, first fault",
    trigger="many requests",
    rate=0.01,
)
def misrouted(lab: Lab) -> None:
    elsewhere: set[str] = set()
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(lab.engine.limits.vocab_size, generator=generator)

    def edit(request: Any) -> None:
        if lab.fires():
            elsewhere.add(request.request_id)

    def change(plan: StepPlan, logits: Any) -> Any:
        parts = sampled_rows(plan)
        rows = []
        for row, part in enumerate(parts):
            sequence = lab.sequence(part.seq_id)
            if sequence is not None and sequence.request.request_id in elsewhere:
                rows.append(row)
        if not rows:
            return logits
        sampled = logits.sampled.clone()
        sampled[rows] = sampled[rows][:, order.to(sampled.device)]
        return replace(logits, sampled=sampled)

    on_request(lab, edit)
    on_logits(lab, change)


@fault(
    "F66",
    "KV memory is sized for the query heads instead of the K/V heads",
    source="no single report chosen; compare vllm-project/vllm#52516",
    trigger="a model with grouped queries; shows in bytes a token and in how many blocks fit into --kv-memory",
    early=True,
)
def sized_for_query_heads(lab: Lab) -> None:
    def make(original: Callable[[ModelConfig, int], int]) -> Callable[[ModelConfig, int], int]:
        def faulty(self: ModelConfig, element_bytes: int) -> int:
            lab.fires()
            return original(self, element_bytes) * self.num_heads // self.num_kv_heads

        return faulty

    def make_format(original: Callable[[KVFormat, ModelConfig], int]) -> Callable[[KVFormat, ModelConfig], int]:
        def faulty(self: KVFormat, model: ModelConfig) -> int:
            lab.fires()
            return original(self, model) * model.num_heads // model.num_kv_heads

        return faulty

    lab.wrap(ModelConfig, "kv_bytes_per_token", make)
    lab.wrap(KVFormat, "bytes_per_token", make_format)
