"""What the suite says when the evidence is taken away: ``python -m tests.harness.conformance.blindness --out FILE.md``.

A case that rests on evidence (a hit, a preemption, company in the batch, a choice that is not a tie) must not pass where
there is none.  Each such case is run against a sound reference engine in a world that lacks its evidence:

========== ===========================================================================================
cache off  no prefix cache
roomy      a pool that the load cannot fill
one seat   one request at a time
short      a context in which no form can be filled in
no choice  a model whose logits are all equal: whatever it answers decides nothing
========== ===========================================================================================

INCONCLUSIVE and UNSUPPORTED are right; a PASS is blindness.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from harness.conformance.case import Case
from harness.conformance.cases import all_cases
from harness.conformance.context import Options
from harness.conformance.runner import run_suite
from harness.engines.catalogue import find
from harness.engines.launch import launched
from harness.results.conformance import CaseResult

COMMON = {"max_model_len": 2048, "max_num_batched_tokens": 128, "debug_endpoints": True, "threads": 1}
SMALL = {**COMMON, "kv_blocks": 192, "block_size": 16, "max_num_seqs": 16}
WORLDS: dict[str, dict[str, object]] = {
    "cache off": {**SMALL, "prefix_caching": False},
    "roomy": {**COMMON, "kv_blocks": 16384, "block_size": 16, "max_num_seqs": 16},
    "one seat": {**SMALL, "max_num_seqs": 1},
    "short": {**SMALL, "max_model_len": 96},
    "no choice": SMALL,
}
# The first line whose words stand in a case's evidence rule names the world that lacks it.
LACKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("cache off", ("hit", "same salt", "filled over", "behind another parent", "hits by them")),
    ("roomy", ("demand", "cannot hold", "preemption")),
    ("one seat", ("in one batch", "all eight", "long prefill", "beside it", "streams under way together")),
    ("short", ("before the limit",)),
    (
        "no choice",
        (
            "precision alone", "scored", "can differ", "clearly ranked", "really generated",
            "before it", "penalty", "are swapped", "token is open", "open prompts", "near each other",
        ),
    ),
)  # fmt: skip


def world_of(case: Case) -> str | None:
    """The world without this case's evidence; None where the rule speaks of something that no world takes away."""
    return next((world for world, words in LACKS if any(word in case.evidence for word in words)), None)


def without_preference(folder: Path) -> Path:
    """The sentinel with a head of zeros: every logit is 0."""
    import torch
    from safetensors.torch import load_file, save_file

    from reference_engine.sentinel.export import write_directory

    write_directory(folder)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for name in tensors:
            if "lm_head" in name or ("embed_tokens" in name and not any("lm_head" in other for other in tensors)):
                tensors[name] = torch.zeros_like(tensors[name])
        save_file(tensors, file)
    return folder


async def look(world: str, cases: list[Case], folder: Path, effort: float) -> list[CaseResult]:
    """The verdicts of ``cases`` in one world."""
    model = str(without_preference(folder / "flat")) if world == "no choice" else "sentinel"
    settings = {"model": model, **WORLDS[world]}
    if world == "no choice":
        settings["served_model_name"] = "flat"  # its answers are not the sentinel's
    name = world.replace(" ", "-")
    async with launched(find("reference"), settings, folder / "logs", name=name) as engine:
        options = Options(timeout_s=30.0, effort=effort)
        return (await run_suite(engine.url, [case.id for case in cases], options)).results


def markdown(found: dict[str, tuple[str, CaseResult]], untried: list[Case]) -> str:
    """The page."""
    blind = sorted(id_ for id_, (_, result) in found.items() if result.verdict == "PASS")
    lines = [
        "# What the suite says without evidence",
        "",
        f"`python -m tests.harness.conformance.blindness`, {datetime.now(UTC):%Y-%m-%d}, reference engine, "
        f"{platform.machine()}, Python {platform.python_version()}.",
        "The worlds are explained at the top of that file.",
        "",
        f"{len(found)} cases with an evidence rule, each in the world that lacks its evidence: "
        f"**{len(blind)} passed all the same**{': ' + ', '.join(blind) if blind else ''}.",
        "",
        "| case | evidence it needs | world | verdict | reason |",
        "|---|---|---|---|---|",
    ]
    cases = all_cases()
    for id_, (world, result) in found.items():
        reason = result.reason.replace("|", "\\|")[:160]
        lines.append(f"| {id_} | {cases[id_].evidence} | {world} | {result.verdict} | {reason} |")
    if untried:
        lines += ["", "Not tried, because no world here takes their evidence away:", ""]
        lines += [f"- {case.id}: {case.evidence}" for case in untried]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="Markdown file to write; else it is printed")
    parser.add_argument("--effort", type=float, default=0.3, help="scale of sample sizes")
    parser.add_argument("--world", choices=sorted(WORLDS), action="append", help="only this one; repeatable")
    arguments = parser.parse_args()
    ruled = [case for case in all_cases().values() if case.evidence and not case.soak]
    found: dict[str, tuple[str, CaseResult]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for world in arguments.world or WORLDS:
            cases = [case for case in ruled if world_of(case) == world]
            for result in asyncio.run(look(world, cases, Path(folder), arguments.effort)):
                found[result.id] = (world, result)
                print(f"{world:10} {result.id:8} {result.verdict:12} {result.reason[:120]}", file=sys.stderr)
    page = markdown(found, [case for case in ruled if world_of(case) is None])
    if arguments.out is None:
        print(page)
    else:
        arguments.out.write_text(page, encoding="utf-8")
    return int(any(result.verdict == "PASS" for _, result in found.values()))


if __name__ == "__main__":
    sys.exit(main())
