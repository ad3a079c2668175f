"""Planning needs no tensor library: importing and using the scheduler leaves torch out of the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import sys
from reference_engine import admission, config, plan, policies, request, scheduler, waiting
from reference_engine.kv import block_pool, contract, ledger, manager, prefix_cache
engine = scheduler.Scheduler(config.SchedulerConfig(max_model_len=64), config.CacheConfig(num_blocks=8))
engine.add(request.Request("a", (1, 2, 3), request.SamplingParams(max_tokens=2)))
step = engine.schedule()
engine.commit(step, {0: [4]})
engine.audit()
heavy = {"torch", "numpy", "triton", "transformers", "pandas"} & {name.split(".")[0] for name in sys.modules}
print(sorted(heavy), len(step.seqs))
"""


def test_the_scheduler_and_all_below_it_work_without_torch() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[] 1"
