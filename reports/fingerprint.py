"""What was measured, on what, how, and when: enough to run it again and to see whether two reports may be compared."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.results.schema import Calibration, MachineInfo
from reports.comparability import dtype_name, model_name
from reports.dataset import Dataset, Engine, load_words
from reports.words import NULL_TEXT, byte_size, count

RUN_FILES = (
    "run.json",
    "summary.json",
    *(f"{name}.{ext}" for ext in ("parquet", "jsonl") for name in ("requests", "chunks", "metrics", "system")),
)
# Settings that matter most for KV memory and speed, most telling first; engines use different names for some.
NOTABLE: tuple[str, ...] = (
    "policy",
    "block_size",
    "kv_slots_reserved",
    "kv_tokens",
    "kv_blocks",
    "kv_memory",
    "max_num_seqs",
    "prefix_caching",
    "max_num_batched_tokens",
    "attention",
    "threads",
)


def pairs(values: Mapping[str, Any], prefix: str = "") -> str:
    """Settings as text: nested ones under a dotted name, long decimals shortened."""
    told = []
    for key, value in sorted(values.items()):
        if isinstance(value, Mapping):
            told.append(pairs(value, f"{prefix}{key}."))
        else:
            told.append(f"{prefix}{key}={f'{value:.6g}' if isinstance(value, float) else value}")
    return ", ".join(text for text in told if text)


def engine_facts(engine: Engine) -> list[tuple[str, str]]:
    """What an engine told of itself."""
    info = engine.info
    facts = [
        ("kind", info.kind),
        ("version", info.version),
        ("model", info.model),
        ("dtype", info.dtype),
        ("max_model_len", None if info.max_model_len is None else f"{info.max_model_len:,}"),
        ("settings", pairs(info.settings) or None),
        ("recipe", info.recipe),
        ("address", info.url or None),
    ]
    return [(key, NULL_TEXT if value is None else value) for key, value in facts]


def machine_words(machine: MachineInfo) -> str:
    """A machine in one line."""
    gpus = [str(gpu.get("name", "GPU")) for gpu in machine.gpus]
    drivers = dict.fromkeys(f"driver {gpu['driver']}" for gpu in machine.gpus if gpu.get("driver"))
    return ", ".join(
        [
            machine.hostname,
            machine.cpu,
            f"{machine.cores} core{'' if machine.cores == 1 else 's'}",
            byte_size(machine.memory_bytes),
            *(gpus or ["no GPU"]),
            *drivers,
        ]
    )


def notable_settings(engine: Engine, engines: list[Engine]) -> list[str]:
    """The settings that a reader looks for first; of these, the ones that tell engines of one kind apart lead."""
    settings = engine.info.settings
    kin = [other.info.settings for other in engines if other.info.kind == engine.info.kind]
    present = [key for key in NOTABLE if isinstance(settings.get(key), str | int | float)]
    present.sort(key=lambda key: all(other.get(key) == settings[key] for other in kin))
    return [f"{key} {_setting(key, settings[key])}" for key in present[:5]]


def _setting(key: str, value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return byte_size(float(value)) if key in ("kv_memory", "kv_pool_bytes") else count(float(value))
    return str(value)


def date_words(iso: str) -> str:
    """An ISO 8601 time for people; text that is no such time stays as it is."""
    try:
        return datetime.fromisoformat(iso).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return iso


def command_words(command: list[str]) -> str:
    """The command as one would type it."""
    words = list(command)
    if words and Path(words[0]).name in ("main.py", "__main__.py", "pagedbench"):
        words[0] = "pagedbench"
    return shlex.join(words)


def client_words(found: Calibration | None) -> str:
    """What is known about the load client's own error on the machine of a run."""
    if found is None:
        return "not calibrated on this machine (pagedbench calibrate)"
    if found.ceiling_streams is None:
        return f"calibrated {date_words(found.created_utc)}: did not keep up even at the first level"
    best = next(level for level in found.levels if level.streams == found.ceiling_streams)
    return (
        f"calibrated {date_words(found.created_utc)}: {found.stamp} stamps, keeps up with {found.ceiling_streams} streams "
        f"({found.ceiling_chunks_per_s or 0:.0f} chunks/s); there TTFT p50 is off by {best.ttft_p50_error_ms:+.2f} ms and ITL "
        f"p99 by {best.itl_p99_error:+.1%}"
    )


def fingerprint(data: Dataset) -> list[tuple[str, str]]:
    """The first screen's line: which engines, model, flags, seed, machine, when."""
    runs = [run.run.manifest for run in data.runs]
    told = []
    for engine in data.engines:
        info = engine.info
        what = " ".join(word for word in (info.kind, info.version) if word) or "unknown engine"
        told.append(f"{engine.label}: {', '.join([what, *notable_settings(engine, data.engines)])}")
    models = dict.fromkeys(model_name(e.info.model) for e in data.engines if e.info.model)
    dtypes = dict.fromkeys(name for e in data.engines if (name := dtype_name(e)))
    digests: dict[str, dict[str, None]] = {}
    for cell in data.cells:
        digests.setdefault(cell.info.workload.name, {})[cell.info.workload.digest[:8]] = None
    shown = [f"{name} {'/'.join(list(found)[:2])}{' ...' if len(found) > 2 else ''}" for name, found in digests.items()]
    return [
        ("Engines", " · ".join(told) or NULL_TEXT),
        ("Model", f"{', '.join(models) or NULL_TEXT}, {', '.join(dtypes) or 'dtype not stated'}"),
        ("Requests", ", ".join(shown) or NULL_TEXT),
        ("Seed", ", ".join(dict.fromkeys(str(run.seed) for run in runs))),
        ("Date", ", ".join(dict.fromkeys(date_words(run.created_utc) for run in runs))),
        ("Machine", " / ".join(dict.fromkeys(machine_words(run.machine) for run in runs))),
    ]


def raw_files(path: Path) -> list[str]:
    """The files of a run directory that hold what was measured, relative to it."""
    logs = sorted(f"logs/{log.name}" for log in (path / "logs").glob("*") if log.is_file())
    return [*(name for name in RUN_FILES if (path / name).is_file()), *logs]


def run_facts(data: Dataset, out_dir: Path | None) -> list[dict[str, Any]]:
    """Per run: identity, command, machine, packages, and the raw files beside the page."""
    facts = []
    for one in data.runs:
        manifest = one.run.manifest
        beside = out_dir is not None and out_dir.resolve() == one.run.path.resolve()
        facts.append(
            {
                "manifest": manifest,
                "command": command_words(manifest.command),
                "rebuild": shlex.join(["pagedbench", "report", one.run.path.resolve().name]),
                "machine": machine_words(manifest.machine),
                "client": client_words(manifest.machine.calibration),
                "packages": ", ".join(f"{k} {v}" for k, v in sorted(manifest.machine.packages.items())),
                "files": raw_files(one.run.path),
                "linked": beside,
            }
        )
    return facts


def workload_facts(data: Dataset) -> list[dict[str, Any]]:
    """Per workload: parameters, seed, digest."""
    seen: dict[tuple[str, str], dict[str, Any]] = {}
    for cell in data.cells:
        info = cell.info.workload
        seen.setdefault(
            (info.name, info.digest),
            {
                "name": f"{info.name}, {load_words(cell.info.load)}",
                "parameters": pairs(info.parameters),
                "seed": info.seed,
                "digest": info.digest,
            },
        )
    return list(seen.values())
