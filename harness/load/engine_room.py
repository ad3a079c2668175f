"""Making an engine ready: launched if it has a recipe, probed, and described; and finding who can count its tokens."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.engines.catalogue import find
from harness.engines.dialects import dialect_of
from harness.engines.errors import EngineError, UnreachableError
from harness.engines.installed import require_installed
from harness.engines.launch import RunningEngine, launched
from harness.engines.metrics import parse_slots
from harness.engines.probe import Probe, probe, probe_launched
from harness.engines.token_counter import ServerCounter
from harness.load.dialect import Dialect
from harness.load.plan import EngineAsked, RunPlan
from harness.load.tokenizer_file import FileCounter
from harness.telemetry.scrape import Scraper
from workloads.tokens import TokenCounter, WordCounter

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ReadyEngine:
    """An engine that answers, and how to speak to it."""

    found: Probe
    dialect: Dialect
    pids: Callable[[], Sequence[int]] | None
    crash: Callable[[], str | None]


def check_recipes(plan: RunPlan) -> None:
    """Whether every engine of the plan could be started: a mistake in the last one should not cost the first one's
    time.  Raises RecipeError.
    """
    for asked in plan.engines:
        if asked.recipe is not None:
            recipe = find(asked.recipe)
            require_installed(recipe, recipe.plan(asked.settings, port=0).values)


@contextlib.asynccontextmanager
async def ready_engine(
    asked: EngineAsked, logs: Path, note: Note, *, api_key: str | None
) -> AsyncIterator[ReadyEngine]:
    """The engine for the length of the block.  Raises RecipeError and EngineError."""
    async with contextlib.AsyncExitStack() as stack:
        running: RunningEngine | None = None
        if asked.recipe is not None:
            note(f"starting {asked.name} ({asked.recipe})")
            recipe = find(asked.recipe)
            running = await stack.enter_async_context(
                launched(recipe, asked.settings, logs, name=asked.name, share_device=asked.share_device)
            )
            found = await probe_launched(running, recipe)
        else:
            assert asked.url is not None
            found = await probe(asked.url, api_key, asked.model, name=asked.name)
        info = found.info
        facts = {"kv_tokens": asked.kv_tokens, "kv_bytes_per_token": asked.kv_bytes_per_token}
        info.settings.update({name: value for name, value in facts.items() if value is not None})
        note(f"{asked.name}: {info.kind or 'engine'} {info.version or ''} serves {info.model} at {info.url}")
        for finding in found.capabilities.notes:
            note(f"{asked.name}: {finding}")
        yield ReadyEngine(
            found=found,
            dialect=dialect_of(found, asked.extra_body),
            pids=None if running is None else running.pids,
            crash=(lambda: None) if running is None else running.crash,
        )


def scrapers_of(found: Probe, api_key: str | None) -> list[Scraper]:
    """What the engine tells about itself: ``/metrics``, and the ``/slots`` of llama.cpp."""
    scrapers = []
    if found.capabilities.metrics:
        scrapers.append(Scraper(found.info.url, path=found.capabilities.metrics_path, api_key=api_key))
    if found.capabilities.slots:
        pool = found.info.settings.get("kv_tokens")
        parse = functools.partial(parse_slots, pool_tokens=pool if isinstance(pool, int) else None)
        scrapers.append(Scraper(found.info.url, path="/slots", api_key=api_key, parse=parse))
    return scrapers


async def token_counter(
    plan: RunPlan, first: Probe, stack: contextlib.ExitStack, note: Note, *, api_key: str | None
) -> TokenCounter:
    """Who counts prompts: the tokenizer that the user gave, else the first engine that can, else words.

    What needs closing is put on ``stack``.
    """
    if plan.tokenizer is not None:
        return FileCounter(plan.tokenizer)
    candidates = [first]
    if first.capabilities.tokenize is None:
        for asked in plan.engines:
            if asked.url is not None and asked.name != first.info.name:
                with contextlib.suppress(UnreachableError):
                    candidates.append(await probe(asked.url, api_key, asked.model, name=asked.name))
    for found in candidates:
        if found.capabilities.tokenize is not None:
            server = ServerCounter(found.info.url, found.capabilities.tokenize, model=found.info.model, api_key=api_key)
            return stack.enter_context(server)
    note("no engine has /tokenize and no --tokenizer was given: prompt lengths are estimates")
    return WordCounter()


def context_limit(plan: RunPlan, first: Probe) -> int | None:
    """The longest prompt and answer, in tokens, that every engine of the plan is known to take."""
    limits = [plan.max_model_len, first.info.max_model_len, *(_limit_of(asked) for asked in plan.engines)]
    return min((limit for limit in limits if limit is not None), default=None)


def _limit_of(asked: EngineAsked) -> int | None:
    """The context length that a recipe's settings ask for, when they do."""
    value = asked.settings.get("max_model_len")
    try:
        return None if value is None else int(value)
    except (TypeError, ValueError):
        raise EngineError(f"engine {asked.name!r}: max_model_len must be a whole number, not {value!r}") from None
