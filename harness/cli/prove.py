"""``pagedbench conform --prove``: the kill matrix of the suite on the reference engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import typer

from harness.cli.errors import CliError
from harness.conformance.case import Case
from harness.conformance.context import Options
from harness.conformance.digests import digest_of_files
from harness.conformance.matrix import KillMatrix, MatrixError, MatrixFile, Settings
from harness.conformance.prove import FaultEntry, Proof, Server
from harness.conformance.prove_report import markdown
from harness.engines.catalogue import find
from harness.engines.errors import EngineError
from harness.engines.launch import RunningEngine, launched

MODEL = "sentinel"
FILE = "kill-matrix.json"
# A pool that a handful of requests fill, a budget that long prompts exceed, and pages that cases can look into.
SETTINGS: Settings = {
    "kv_blocks": 192,
    "block_size": 16,
    "max_model_len": 2048,
    "max_num_seqs": 16,
    "max_num_batched_tokens": 128,
    "debug_endpoints": True,
    "threads": 1,
}
RECIPE_NAMES = {"num_blocks": "kv_blocks"}  # of the server's options, where the recipe calls them otherwise


@dataclass(frozen=True, slots=True)
class Wanted:
    """What ``--prove`` was asked for beside the options of any conformance run."""

    faults: tuple[str, ...] = ()  # ids; none means all
    full: bool = False
    each_case: bool = False
    redo: bool = False


def entries_of(ids: tuple[str, ...]) -> list[FaultEntry]:
    """The catalogue, each fault in all its ways, or those that are named.  Raises CliError."""
    from reference_engine.faults import registry
    from reference_engine.faults.ways import WAYS

    folder = Path(registry.__file__).parent
    known: dict[str, FaultEntry] = {}
    for entry in registry.catalogue().values():
        digest = digest_of_files(*(folder / f"{name}.py" for name in (entry.theme, "lab", "tools")))
        for name in (entry.id, *(f"{entry.id}:{way}" for way in WAYS.get(entry.id, ()))):
            known[name] = FaultEntry(name, entry.title, entry.source, entry.kind, dict(entry.seen_with), digest)
    for name in ids:
        if name not in known:
            raise CliError(f"--fault {name!r} is not in the catalogue; python -m reference_engine.faults --list", 3)
    if not ids:
        return list(known.values())
    return [entry for name, entry in known.items() if name in ids or entry.base in ids]


class Servers:
    """Starts reference engines: with one fault or none, and the naive ones that judge them."""

    def __init__(self, model: str, folder: Path, judge: str | None) -> None:
        """``judge``: URL of a naive engine that already runs with ``model``."""
        self._model = model
        self._logs = folder / "logs"
        self._checkpoints = folder / "models"
        self._judges: dict[str, str] = {} if judge is None else {model: judge}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Servers:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def settings_of(self, entry: FaultEntry | None, settings: Settings) -> Settings:
        """What the recipe is given: the usual settings, those under which the fault can be seen, the fault."""
        wanted = {"model": self._model, **SETTINGS}
        for name, value in settings.items():
            wanted[RECIPE_NAMES.get(name, name)] = value
        window = wanted.pop("sliding_window", None)
        if window is not None:
            wanted["model"] = str(self._windowed(int(window)))
        if entry is not None:
            wanted["inject_fault" if entry.kind == "fault" else "benign"] = entry.id
        return {name: value for name, value in wanted.items() if value is not None}

    def _windowed(self, window: int) -> Path:
        """The sentinel's weights in an architecture that attends the last ``window`` tokens."""
        from reference_engine.sentinel.export import write_directory

        folder = self._checkpoints / f"sentinel-window-{window}"
        if not (folder / "config.json").exists():
            write_directory(folder, sliding_window=window)
        return folder

    async def judge(self, model: str) -> str:
        """A naive fp32 engine with ``model``; it stays until the end."""
        if model not in self._judges:
            settings = {
                "model": model,
                "attention": "naive",
                "dtype": "float32",
                "prefix_caching": "false",
                "threads": "1",
            }
            name = f"prove-reference-{Path(model).name}"
            running = await self._stack.enter_async_context(
                launched(find("reference"), settings, self._logs, name=name)
            )
            self._judges[model] = running.url
        return self._judges[model]

    @asynccontextmanager
    async def start(self, entry: FaultEntry | None, settings: Settings) -> AsyncIterator[Server]:
        mine = self.settings_of(entry, settings)
        judge = await self.judge(str(mine["model"]))
        name = f"prove-{entry.id if entry else 'clean'}"
        stack = AsyncExitStack()
        engine: RunningEngine | None = None
        before = 0  # strikes of servers that a case has ended since

        async def begin() -> str:
            nonlocal engine, before
            if engine is not None:
                with contextlib.suppress(OSError):
                    before += strikes(engine.url) or 0
            await stack.aclose()
            engine = await stack.enter_async_context(launched(find("reference"), mine, self._logs, name=name))
            return engine.url

        def fired() -> int | None:
            now = strikes(engine.url) if engine else None
            return None if now is None else before + now

        await begin()
        try:
            assert engine is not None
            yield Server(
                url=lambda: engine.url if engine else "",
                reference_url=judge,
                restart=begin,
                pids=lambda: engine.pids() if engine else [],
                fired=fired,
            )
        finally:
            await stack.aclose()


def strikes(url: str) -> int | None:
    with urllib.request.urlopen(url + "/debug/faults", timeout=5) as response:
        shown = json.load(response)["faults"]
    return sum(one["fired"] for one in shown) if shown else None


def prove_suite(options: Options, cases: list[Case], wanted: Wanted, *, out: Path | None, as_json: bool) -> int:
    """Draw the matrix, or go on with the one in ``out``; write ``kill-matrix.json`` and ``.md``, show what was found.

    Returns 0 if every fault was killed and no variant complained about, 1 if not, 2 if some fault is inconclusive.
    """
    entries = entries_of(wanted.faults)
    model = options.model or MODEL
    folder = out or Path("runs") / "prove"
    folder.mkdir(parents=True, exist_ok=True)
    places = {entry.id: number for number, entry in enumerate(entries_of(()))}
    empty = KillMatrix(tool_version=version("pagedbench"), engine="reference", model=model)
    file = MatrixFile(folder / FILE, lambda id: places.get(id, len(places)), empty)

    async def main() -> KillMatrix:
        async with Servers(model, folder, options.reference_url) as servers:
            proof = Proof(
                servers.start,
                replace(options, name="reference", model=None),
                file,
                cases=[case.id for case in cases if not case.soak],
                full=wanted.full,
                redo=wanted.redo,
                tell=lambda line: print(line, file=sys.stderr, flush=True),
            )
            async with proof:
                matrix = await proof.run(entries)
                return await proof.run_idle(entries) if wanted.each_case else matrix

    try:
        matrix = asyncio.run(main())
    except MatrixError as error:
        raise CliError(str(error), 3) from error
    except EngineError as error:
        raise CliError(str(error), 3) from error
    text = markdown(matrix, {entry.id: entry.digest for entry in entries_of(())})
    (folder / "kill-matrix.md").write_text(text, encoding="utf-8")
    typer.echo(matrix.model_dump_json(indent=1) if as_json else text)
    if matrix.false_alarms.hits or any(row.verdict == "missed" for row in matrix.faults):
        return 1
    return 2 if matrix.kill_rate.hits < len(matrix.faults) else 0
