"""``pagedbench conform --prove``: the kill matrix of the suite on the reference engine."""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from harness.cli.errors import CliError
from harness.conformance.case import Case
from harness.conformance.context import Options
from harness.conformance.prove import FaultEntry, KillMatrix, Proof, Server, Start
from harness.conformance.prove_report import markdown
from harness.engines.catalogue import find
from harness.engines.errors import EngineError
from harness.engines.launch import RunningEngine, launched

MODEL = "sentinel"
# A pool that a handful of requests fill, a budget that long prompts exceed, and pages that cases can look into.
SETTINGS: dict[str, Any] = {
    "kv_blocks": 192,
    "block_size": 16,
    "max_model_len": 2048,
    "max_num_seqs": 16,
    "max_num_batched_tokens": 128,
    "debug_endpoints": True,
    "threads": 1,
}


def entries_of(ids: list[str] | None) -> list[FaultEntry]:
    """The catalogue, or those of its entries that are named.  Raises CliError."""
    from reference_engine.faults.registry import catalogue

    known = {
        entry.id: FaultEntry(entry.id, entry.title, entry.source, entry.kind, list(entry.needs))
        for entry in catalogue().values()
    }
    for name in ids or []:
        if name not in known:
            raise CliError(f"--fault {name!r} is not in the catalogue; python -m reference_engine.faults --list", 3)
    return [known[name] for name in ids] if ids else list(known.values())


def starter(model: str, logs: Path) -> Start:
    """Starts the reference engine with one fault in it."""

    @asynccontextmanager
    async def start(entry: FaultEntry | None) -> AsyncIterator[Server]:
        mine = {"model": model, **SETTINGS}
        name = "clean"
        if entry is not None:
            mine["inject_fault" if entry.kind == "fault" else "benign"] = name = entry.id
        stack = AsyncExitStack()
        engine: RunningEngine | None = None

        async def begin() -> str:
            nonlocal engine
            await stack.aclose()
            engine = await stack.enter_async_context(launched(find("reference"), mine, logs, name=f"prove-{name}"))
            return engine.url

        await begin()
        try:
            assert engine is not None
            yield Server(engine.url, begin, lambda: engine.pids() if engine else [], lambda: strikes(engine.url))
        finally:
            await stack.aclose()

    return start


def strikes(url: str) -> int | None:
    with urllib.request.urlopen(url + "/debug/faults", timeout=5) as response:
        shown = json.load(response)["faults"]
    return sum(one["fired"] for one in shown) if shown else None


def prove_suite(
    options: Options,
    cases: list[Case],
    *,
    faults: list[str] | None,
    all_killers: bool,
    out: Path | None,
    as_json: bool,
) -> int:
    """Run the matrix, write ``kill-matrix.json`` and ``kill-matrix.md``, show what was found.

    Returns 0 if every fault was killed and no variant complained about, 1 if not, 2 if some fault is inconclusive.
    """
    entries = entries_of(faults)
    folder = out or Path("runs") / "prove"

    folder.mkdir(parents=True, exist_ok=True)
    proofs: list[Proof] = []

    def tell(line: str) -> None:
        """Progress; whatever happens next, what was found so far is on disk."""
        print(line, file=sys.stderr, flush=True)
        write(proofs[0].document(), folder)

    async def main() -> KillMatrix:
        async with AsyncExitStack() as stack:
            mine = replace(options, name="reference")
            if mine.reference_url is None:
                mine.reference_url = await stack.enter_async_context(naive(options.model or MODEL, folder / "logs"))
            proof = Proof(
                starter(options.model or MODEL, folder / "logs"),
                lambda: replace(mine, model=None),
                cases=[case.id for case in cases],
                all_killers=all_killers,
                tell=tell,
            )
            proofs.append(proof)
            return await proof.run(entries, engine="reference", model=options.model or MODEL)

    try:
        matrix = asyncio.run(main())
    except EngineError as error:
        raise CliError(str(error), 3) from error
    write(matrix, folder)
    typer.echo(matrix.model_dump_json(indent=1) if as_json else markdown(matrix))
    if matrix.false_alarms.hits or any(row.verdict == "missed" for row in matrix.faults):
        return 1
    return 2 if matrix.kill_rate.hits < len(matrix.faults) else 0


def write(matrix: KillMatrix, folder: Path) -> None:
    (folder / "kill-matrix.json").write_text(matrix.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (folder / "kill-matrix.md").write_text(markdown(matrix), encoding="utf-8")


@asynccontextmanager
async def naive(model: str, logs: Path) -> AsyncIterator[str]:
    """The engine that judges: naive attention, fp32, no cache."""
    settings = {"model": model, "attention": "naive", "dtype": "float32", "prefix_caching": "false", "threads": "1"}
    async with launched(find("reference"), settings, logs, name="prove-reference") as running:
        yield running.url
