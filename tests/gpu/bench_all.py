"""Build, check and measure everything that needs a GPU, in one call: JSON to a folder, a table to the terminal.

::

    python tests/gpu/bench_all.py --out DIR [--stages check,bits,attention,...] [--dry]

    ceilings   copy bandwidth and bf16 product rate of this device
    check      paged attention against float64, all types, both modes
    bits       deterministic mode: alone = in a batch = in chunks, bit for bit, and so are whole-model logits
    tune       time many tilings; write the best to DIR/tuned.json (copy it to reference_engine/kernels/tuned/)
    attention  our kernels and every peer over a grid of shapes
    staircase  the kernel one means at a time, for docs/kernels.md
    steps      whole decode steps of a Llama-3.1-8B shape: graphs on and off, deterministic on and off
    profile    where the time of a decode step goes, kernel by kernel
    serving    output tokens/s against transformers' continuous batching

``--dry`` runs the same code on tiny shapes, on a CPU in Triton's interpreter (TRITON_INTERPRET=1) or on a GPU.
Each stage's result is written as soon as it is there; a stage that fails says so in the JSON, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import datetime
import json
import secrets
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import random_model  # noqa: E402
import serving  # noqa: E402
import staircase  # noqa: E402
import steps  # noqa: E402
import tune  # noqa: E402

from reference_engine.attention.triton_paged import TritonPagedAttention  # noqa: E402
from reference_engine.kernels import measure  # noqa: E402
from reference_engine.kernels.cases import Case, Problem, build_problem  # noqa: E402
from reference_engine.kernels.ops import TritonOps  # noqa: E402
from reference_engine.kernels.report import summarize  # noqa: E402


class Bench:
    """State that stages share, and the file it goes to."""

    def __init__(self, out: Path, dry: bool) -> None:
        self.out, self.dry = out, dry
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.seed = secrets.randbits(30)
        self.ceilings: measure.Ceilings | None = None
        self.results: dict[str, Any] = {
            "schema": measure.SCHEMA_VERSION,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "environment": measure.describe_environment(self.device),
            "commit": _commit(),
            "dry": dry,
            "seed": self.seed,
            "seconds": {},
        }

    def save(self) -> None:
        (self.out / "kernels.json").write_text(json.dumps(self.results, indent=1, default=str))

    # --- stages ---------------------------------------------------------------------------------------------------

    def stage_ceilings(self) -> dict[str, float] | str:
        if self.device.type != "cuda":
            return "not measured: no CUDA device"
        self.ceilings = measure.measure_ceilings(self.device)
        return self.ceilings.as_json()

    def stage_check(self) -> list[dict[str, Any]]:
        cases = measure.tiny_grid() if self.dry else measure.check_grid()
        if self.device.type == "cuda":
            self.results["compile_errors"] = tune.warm(cases)
        rows = list(measure.check(cases, self.device, seed=self.seed))
        wrong = [row for row in rows if not row["passed"]]
        if wrong:
            raise AssertionError(f"{len(wrong)} of {len(rows)} cases are wrong: {wrong[:5]}")
        return rows

    def stage_bits(self) -> dict[str, Any]:
        """Deterministic mode is judged by equality, never by a tolerance."""
        shape = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 64, "dtype": torch.float16} if self.dry else {}
        lens = ((1, 9, 20), (33, 9, 40)) if self.dry else ((1, 1, 300, 1, 700, 64), (5000, 33, 900, 1024, 700, 2048))
        case = Case("bits", *lens, **shape)  # type: ignore[arg-type]
        problem = build_problem(case, self.device, seed=self.seed)
        backend = TritonPagedAttention(self.device, deterministic=True)
        together = measure.run_ours(problem, backend)
        compared = 0
        for index, (query_len, _) in enumerate(zip(*lens, strict=True)):
            half = (query_len + 1) // 2
            for first, count in {(0, query_len), (0, half), (half, query_len - half), (query_len - 1, 1)}:
                if not count:
                    continue
                alone = _one_sequence(problem, index, first, count)
                start = int(problem.meta.query_start_loc[index]) + first
                if not torch.equal(measure.run_ours(alone, backend), together[start : start + count]):
                    raise AssertionError(f"sequence {index}, rows {first}+{count}: other bits alone than in the batch")
                compared += 1
        return {"attention_slices_equal": compared, "model": self._model_bits()}

    def _model_bits(self) -> dict[str, Any]:
        """Logits of one sequence alone and among others, by deterministic and by ordinary arithmetic."""
        config = random_model.TINY if self.dry else replace(random_model.LLAMA_8B, num_layers=2, vocab_size=4096)
        dtype = torch.float32 if self.dry else torch.bfloat16
        found = {}
        for deterministic in (True, False):
            model = random_model.random_model(config, TritonOps(deterministic=deterministic), self.device, dtype)
            shapes = [(1, 40), (3, 40)] if self.dry else [(1, 900), (7, 900), (64, 900)]
            alone: torch.Tensor | None = None
            same = True
            for batch, seq_len in shapes:
                backend = TritonPagedAttention(self.device, deterministic=deterministic)
                cache = steps.CacheConfig(num_blocks=batch * -(-seq_len // 16), block_size=16)
                runner = random_model.make_runner(model, backend, cache)
                text = torch.randint(config.vocab_size, (seq_len,), generator=torch.Generator().manual_seed(1)).tolist()
                other = torch.randint(config.vocab_size, (batch, seq_len)).tolist()
                logits = _prefill_then_decode(runner, [text, *other[1:]])
                alone = logits if alone is None else alone
                same = same and torch.equal(alone, logits)
            found["deterministic" if deterministic else "ordinary"] = same
        if not found["deterministic"]:
            raise AssertionError("deterministic mode: a sequence's logits have other bits in a batch than alone")
        return {"logits_equal_alone_and_in_batches": found}

    def stage_tune(self) -> dict[str, Any] | str:
        if self.device.type != "cuda" or self.dry:
            return "not measured: needs a CUDA device"
        return tune.tune(self.device, self.out)

    def stage_attention(self) -> dict[str, Any]:
        grid = measure.tiny_grid() if self.dry else measure.default_grid()
        if self.device.type == "cuda":
            self.results["compile_errors"] = [*self.results.get("compile_errors", ()), *tune.warm(grid, (False,))]
        rows: list[dict[str, Any]] = []
        for number, case in enumerate(grid):
            modes = (False, True) if number == 0 or case.name.startswith("prefill 4") else (False,)
            rows.extend(measure.time_case(case, self.device, self.ceilings, seed=self.seed + number, modes=modes))
            versus = measure.compare_with_peers(rows) if self.ceilings is not None else measure.compare_with_peers([])
            self.results["attention"] = {"rows": rows, "against_peers": versus}
            self.save()
        return self.results["attention"]  # type: ignore[no-any-return]

    def stage_staircase(self) -> list[dict[str, Any]] | str:
        if self.device.type != "cuda" or self.dry:
            return "not measured: needs a CUDA device"
        return staircase.climb(self.device)

    def stage_steps(self) -> list[dict[str, Any]]:
        config = random_model.TINY if self.dry else random_model.LLAMA_8B
        dtype = torch.float32 if self.dry else torch.bfloat16
        shapes = [(1, 20), (3, 40)] if self.dry else [(1, 512), (1, 8192), (64, 2048), (256, 1024)]
        few = shapes[:1] if self.dry else [(1, 512), (64, 2048)]
        copy = None if self.ceilings is None else self.ceilings.copy
        rows: list[dict[str, Any]] = []
        model = random_model.random_model(config, TritonOps(), self.device, dtype)
        repeats = 2 if self.dry else 20
        rows += steps.measure_steps(model, shapes, copy, repeats=repeats)
        self._free()
        rows += steps.measure_steps(model, few, copy, graphs=False, repeats=repeats)
        self._free()
        model.ops = TritonOps(deterministic=True)
        rows += steps.measure_steps(model, few, copy, deterministic=True, repeats=repeats)
        del model
        self._free()
        return rows

    def stage_profile(self) -> list[dict[str, Any]] | str:
        if self.device.type != "cuda" or self.dry:
            return "not measured: needs a CUDA device"
        model = random_model.random_model(random_model.LLAMA_8B, TritonOps(), self.device, torch.bfloat16)
        return steps.profile_steps(model, [(1, 512), (64, 2048), (256, 1024)])

    def stage_serving(self) -> dict[str, Any]:
        config = random_model.TINY if self.dry else random_model.LLAMA_8B
        dtype = torch.float32 if self.dry else torch.bfloat16
        count, mean_in, mean_out, seqs = (4, 8, 4, 2) if self.dry else (128, 161, 128, 64)
        requests = serving.draw_requests(count, config.vocab_size, mean_in, mean_out, self.seed)
        blocks = sum(-(-(len(p) + o + 1) // 16) for p, o in requests) + 1
        rows = []
        model = random_model.random_model(config, TritonOps(), self.device, dtype)
        ours, text = serving.serve_ours(model, requests, max_num_seqs=seqs, blocks=blocks)
        rows += ours
        del model
        self._free()
        found: dict[str, Any] = {
            "requests": count,
            "prompt_tokens": sum(len(p) for p, _ in requests),
            "output_tokens": sum(o for _, o in requests),
            "max_num_seqs": seqs,
            "rows": rows,
        }
        if not self.dry:
            self.results["serving"] = found
            self.save()
            theirs, their_text = serving.serve_transformers(config, self.device, requests, max_num_seqs=seqs, seed=0)
            rows.append(theirs)
            found["ratio"] = ours[-1]["tokens_per_s"] / theirs["tokens_per_s"]
            same = sum(text[key][0] == their_text[key][0] for key in text if their_text.get(key))
            found["first_tokens_equal"] = f"{same} of {len(text)}"
        return found

    def _free(self) -> None:
        import gc

        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


STAGES = ("ceilings", "check", "bits", "tune", "attention", "staircase", "steps", "profile", "serving")


def _commit() -> str | None:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def _one_sequence(problem: Problem, index: int, first: int, count: int) -> Problem:
    """``count`` query rows of one sequence, from its ``first``, as a batch of their own."""
    case, meta = problem.case, problem.meta
    start = int(meta.query_start_loc[index]) + first
    seq_len = case.seq_lens[index] - case.query_lens[index] + first + count
    alone = replace(
        meta,
        query_start_loc=torch.tensor([0, count], dtype=torch.int32, device=problem.query.device),
        seq_lens=torch.tensor([seq_len], dtype=torch.int32, device=problem.query.device),
        block_tables=meta.block_tables[index : index + 1],
        slot_mapping=meta.slot_mapping[start : start + count],
        max_query_len=count,
        max_seq_len=seq_len,
        query_lens=(count,),
        seq_lens_list=(seq_len,),
    )
    return replace(problem, query=problem.query[start : start + count], meta=alone)


def _prefill_then_decode(runner: Any, texts: list[list[int]]) -> torch.Tensor:
    """Logits of the first text's last token, which is decoded after a prefill that ran in two chunks of the whole batch."""
    page = runner.cache.block_size
    per_seq = -(-len(texts[0]) // page)
    tables = [tuple(range(i * per_seq, (i + 1) * per_seq)) for i in range(len(texts))]
    length = len(texts[0])
    logits = torch.empty(0)
    for begin, end in ((0, length // 3), (length // 3, length - 1), (length - 1, length)):
        plan = steps.StepPlan(
            0,
            tuple(
                steps.ScheduledSeq(i, begin, tuple(text[begin:end]), table, 1)
                for i, (text, table) in enumerate(zip(texts, tables, strict=True))
            ),
        )
        logits = runner.execute(plan).sampled[0].clone()
    return logits


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON")
    parser.add_argument("--stages", default=",".join(STAGES), help="comma-separated; default: all")
    parser.add_argument("--dry", action="store_true", help="tiny shapes: the same code, no numbers of interest")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.out, options.dry)
    failed = False
    for name in options.stages.split(","):
        stage: Callable[[], Any] = getattr(bench, f"stage_{name}")
        begin = time.perf_counter()
        try:
            bench.results[name] = stage()
        except Exception as error:
            failed = True
            traceback.print_exc()
            bench.results[f"{name}_error"] = f"{type(error).__name__}: {error}"[:2000]
        bench.results["seconds"][name] = round(time.perf_counter() - begin, 1)
        print(f"[{name}: {bench.results['seconds'][name]} s]", flush=True)
        bench.save()
        bench._free()
    print(summarize(bench.results))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
