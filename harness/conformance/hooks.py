"""The debug endpoints of the reference engine (``serve --debug-endpoints``): what HTTP alone cannot reach."""

from __future__ import annotations

from typing import Any

from harness.conformance.case import Failed
from harness.conformance.context import Context


async def hook(ctx: Context, name: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """``POST /debug/NAME``.  Raises Failed when the engine refuses."""
    reply = await ctx.api.request("POST", f"/debug/{name}", body or {})
    document = reply.json()
    if reply.status != 200 or not isinstance(document, dict):
        raise Failed(f"POST /debug/{name} failed: {reply.words}")
    return document


async def poison_free(ctx: Context) -> dict[str, Any]:
    """Fill free blocks with NaN."""
    return await hook(ctx, "poison", {"value": "nan"})


async def shuffle_free(ctx: Context) -> dict[str, Any]:
    """Permute the order in which free blocks are handed out; cached ones are dropped."""
    return await hook(ctx, "shuffle", {"seed": ctx.rng.randrange(2**31)})


async def attention_errors(ctx: Context, shapes: int) -> list[dict[str, Any]]:
    """Largest errors of the engine's attention against naive attention on random shapes."""
    found = await hook(ctx, "attention", {"shapes": shapes, "seed": ctx.rng.randrange(2**31)})
    rows = found.get("shapes")
    return rows if isinstance(rows, list) else []


async def kv_state(ctx: Context, *, audit: bool = False) -> dict[str, Any]:
    """Block tables and ledger from ``/debug/kv``.  Raises Failed when the audit finds something."""
    reply = await ctx.api.request("GET", f"/debug/kv{'?audit=1' if audit else ''}")
    document = reply.json()
    if reply.status != 200 or not isinstance(document, dict):
        raise Failed(f"GET /debug/kv failed: {reply.words}")
    return document
