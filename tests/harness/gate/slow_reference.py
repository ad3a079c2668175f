"""The reference engine's server with a slowdown put into every step: ``python slow_reference.py SHARE [options...]``.

Each step is followed by a sleep of SHARE times its own duration, on the engine's thread: the known truth of the gate's
power measurements (docs/gate.md).
"""

from __future__ import annotations

import sys
import time

from reference_engine.engine import Engine
from reference_engine.outputs import SequenceOutput
from reference_engine.plan import StepPlan
from reference_engine.server.__main__ import main


def slow_down(share: float) -> None:
    run = Engine.run

    def slow_run(self: Engine, plan: StepPlan) -> list[SequenceOutput]:
        started = time.perf_counter()
        outputs = run(self, plan)
        if not plan.is_empty:
            time.sleep(share * (time.perf_counter() - started))
        return outputs

    Engine.run = slow_run  # type: ignore[method-assign]


if __name__ == "__main__":
    slow_down(float(sys.argv.pop(1)))
    sys.exit(main())
