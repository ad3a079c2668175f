"""Small random changes of the reference engine's source, each judged by the suite as a client sees it: what slips through?

    python -m tests.harness.conformance.random_mutants --count 50 --out DIR [--seed N] [--structural]

The faults of the catalogue are those that somebody thought of.  This changes one operator, constant, condition or statement
somewhere in the code that schedules, keeps KV memory, samples and speaks HTTP, serves the result, and runs the suite
against it.  A mutant that does not start or stops answering is found, too.  What survives is printed as a diff, to be looked
at: it changes nothing that a client could see, or the suite is blind there.

``DIR/mutants.jsonl`` gets one line a mutant; a run that was stopped goes on behind the last.
"""

from __future__ import annotations

import argparse
import ast
import copy
import difflib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
PACKAGE = "reference_engine"
MODULES = (
    "attention/gather.py", "attention/sparse_decode.py", "batch.py", "continuation.py", "detokenizer.py", "engine.py",
    "filters.py", "kv/block_pool.py", "kv/manager.py", "kv/prefix_cache.py", "logprobs.py", "penalties.py", "rng.py",
    "sampler.py", "scheduler.py", "server/api.py", "server/calls.py", "server/errors.py", "server/fields.py",
    "server/info.py", "server/loop.py", "server/scores.py", "server/wire.py", "waiting.py",
)  # fmt: skip
SERVER = (
    "--model", "sentinel", "--num-blocks", "192", "--block-size", "16", "--max-model-len", "2048", "--max-num-seqs", "16",
    "--max-num-batched-tokens", "128", "--threads", "1",
)  # fmt: skip
START_S = 60.0
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


def places(tree: ast.Module) -> list[ast.AST]:
    """Nodes that can be changed.  Not in annotations, decorators, docstrings, asserts and exceptions' texts."""
    found: list[ast.AST] = []

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.Raise | ast.Assert | ast.Import | ast.ImportFrom):
            return
        if is_changeable(node):
            found.append(node)
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "bases", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    walk(child)

    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for statement in node.body:
                if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                    walk(statement)
    return list({id(node): node for node in found}.values())


def is_changeable(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value=value):
            return isinstance(value, bool | int | float)
        case ast.Call(func=ast.Name(id=name)):
            return name in NAMES
        case ast.BinOp(op=operator) | ast.BoolOp(op=operator) | ast.Compare(ops=[operator, *_]):
            return type(operator) in SWAPS
        case ast.UnaryOp(op=ast.Not()) | ast.If() | ast.Expr(value=ast.Call()) | ast.AugAssign():
            return True
    return False


def mutate(source: str, rng: random.Random) -> str | None:
    """``source`` with one change; None where there is nothing to change."""
    tree = ast.parse(source)
    nodes = places(tree)
    if not nodes:
        return None
    target = rng.choice(nodes)

    class Change(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> Any:
            if node is not target:
                return self.generic_visit(node)
            new = changed(node, rng)
            return ast.copy_location(new, node) if hasattr(node, "lineno") else new

    return ast.unparse(ast.fix_missing_locations(Change().visit(tree)))


def changed(node: ast.AST, rng: random.Random) -> ast.AST:
    new: Any = copy.deepcopy(node)
    match new:
        case ast.BinOp() | ast.BoolOp():
            new.op = SWAPS[type(new.op)]()
        case ast.Compare():
            new.ops[0] = SWAPS[type(new.ops[0])]()
        case ast.Constant(value=bool()):
            new.value = not new.value
        case ast.Constant(value=int()):
            new.value += rng.choice((1, -1)) if new.value else 1
        case ast.Constant():
            new.value = new.value * 2 + 1
        case ast.Call():
            new.func.id = NAMES[new.func.id]
        case ast.UnaryOp():
            return new.operand
        case ast.If():
            new.test = ast.UnaryOp(ast.Not(), new.test)
        case _:
            return ast.Pass()
    return new


def mutant(seed: int) -> tuple[str, str, str]:
    """(module, its plain source, its changed source); both without comments, so that they differ in one place."""
    rng = random.Random(seed)
    while True:
        # A module's share is its size.
        sizes = [(ROOT / PACKAGE / module).stat().st_size for module in MODULES]
        module = rng.choices(MODULES, sizes)[0]
        plain = ast.unparse(ast.parse((ROOT / PACKAGE / module).read_text()))
        new = mutate(plain, rng)
        if new is not None and new != plain:
            return module, plain, new


@contextmanager
def served(folder: Path, *options: str) -> Iterator[str | None]:
    """The server of the package in ``folder``; its address, or None if it does not start."""
    log = (folder / "server.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "reference_engine.server", "--port", "0", *options],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, stdout=subprocess.PIPE, stderr=log, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        until, url = time.monotonic() + START_S, None
        while url is None and time.monotonic() < until and process.poll() is None:
            line = process.stdout.readline()
            url = line.split()[-1] if "listening on" in line else None
            time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()
        log.close()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url + "/health", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def judge(url: str, reference: str, out: Path, options: list[str], limit_s: float) -> dict[str, Any]:
    """What the suite says of the server at ``url``."""
    command = [
        sys.executable, "-m", "harness.cli", "conform", "--engine", f"m={url}", "--reference-url", reference,
        "--timeout", "20", "--out", str(out), *options,
    ]  # fmt: skip
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return {"exit": None, "failed": {}, "status": "the suite took too long"}
    file = out / "conformance-m.json"
    if not file.exists():
        return {"exit": done.returncode, "failed": {}, "status": done.stderr.strip()[-200:]}
    document = json.loads(file.read_text())
    file.unlink()
    failed = {
        r["id"]: r["reason"][:160] for r in document["results"] if r["verdict"] in ("FAIL", "NON-STRICT", "ERROR")
    }
    return {"exit": done.returncode, "failed": failed, "status": document["status"]}


def clean_failures(reference: str, work: Path, stages: list[list[str]]) -> set[str]:
    """Cases that complain about the engine as it is."""
    with served(work, *SERVER) as url:
        assert url is not None, "the engine as it is does not start"
        return {case for options in stages for case in judge(url, reference, work, options, 1200)["failed"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20, help="mutants [count; default 20]")
    parser.add_argument("--seed", type=int, default=0, help="of the first one")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--structural", action="store_true", help="only the fast subset")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "mutants.jsonl"
    known = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    stages = [["--structural"]] + ([] if arguments.structural else [["--effort", "0.2"]])
    with tempfile.TemporaryDirectory() as text:
        work = Path(text)
        shutil.copytree(ROOT / PACKAGE, work / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
        naive = (
            "--model",
            "sentinel",
            "--attention",
            "naive",
            "--dtype",
            "float32",
            "--no-prefix-cache",
            "--threads",
            "1",
        )
        judge_home = work / "judge"
        judge_home.mkdir()
        shutil.copytree(work / PACKAGE, judge_home / PACKAGE)
        with served(judge_home, *naive) as reference:
            assert reference is not None, (judge_home / "server.log").read_text()
            broken = clean_failures(reference, work, stages)
            print("complaints about the engine as it is:", sorted(broken), flush=True)
            for seed in range(arguments.seed, arguments.seed + arguments.count):
                if seed in {one["seed"] for one in known}:
                    continue
                one = try_mutant(seed, work, reference, stages, broken)
                known.append(one)
                with file.open("a") as stream:
                    stream.write(json.dumps(one) + "\n")
                print(seed, one["module"], one["verdict"], " ".join(list(one["killers"])[:4]), flush=True)
                if one["verdict"] == "survived":
                    print(one["diff"], flush=True)
    print(dict(Counter(one["verdict"] for one in known)))
    return 0


def try_mutant(seed: int, work: Path, reference: str, stages: list[list[str]], broken: set[str]) -> dict[str, Any]:
    module, plain, new = mutant(seed)
    diff = "\n".join(list(difflib.unified_diff(plain.splitlines(), new.splitlines(), lineterm="", n=2))[2:])
    home = work / PACKAGE / module
    original = home.read_text()
    home.write_text(new)
    began, killers, verdict = time.monotonic(), {}, "survived"
    try:
        with served(work, *SERVER) as url:
            if url is None:
                verdict = "does not start"
            for options in stages if url else []:
                found = judge(url, reference, work, options, 1200)
                killers = {case: why for case, why in found["failed"].items() if case not in broken}
                if killers or found["exit"] is None or not answers(url):
                    killers = killers or {"engine": f"gone or stuck: {found['status']}"}
                    verdict = "killed"
                    break
    finally:
        home.write_text(original)
    return {"seed": seed, "module": module, "verdict": verdict, "killers": killers, "diff": diff,
            "seconds": round(time.monotonic() - began)}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
