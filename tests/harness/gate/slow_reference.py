"""The reference engine's server with a slowdown put into every step: ``python slow_reference.py SHARE [options...]``.

Each step is followed by a sleep of SHARE times its own duration, on the engine's thread: the known truth of the gate's
power measurements (docs/gate.md).  With ``--simulate`` a step is a sleep already; it becomes longer by SHARE.
"""

from __future__ import annotations

import math
import sys
import time

from reference_engine.engine import Engine
from reference_engine.outputs import SequenceOutput
from reference_engine.plan import StepPlan
from reference_engine.server.__main__ import main
from reference_engine.simulate.profile import Profile
from reference_engine.simulate.runner import SimulatedRunner


def slow_down(share: float) -> None:
    """Replace ``Engine.run``: a step that computed for t seconds takes ``share * t`` seconds more; an empty one does not."""
    run, step_seconds = Engine.run, Profile.step_seconds

    def slow_run(self: Engine, plan: StepPlan) -> list[SequenceOutput]:
        started = time.perf_counter()
        outputs = run(self, plan)
        if not (plan.is_empty or isinstance(self.runner, SimulatedRunner)):
            time.sleep(share * (time.perf_counter() - started))
        return outputs

    def slow_seconds(self: Profile, plan: StepPlan, block_size: int) -> float:
        return (1 + share) * step_seconds(self, plan, block_size)

    Engine.run = slow_run  # type: ignore[method-assign]
    Profile.step_seconds = slow_seconds  # type: ignore[method-assign]


def share_of(words: list[str]) -> float:
    """The slowdown named first on the command line; it is taken out of ``words``.  Exits with 2 where there is none."""
    try:
        share = float(words.pop(1))
    except (IndexError, ValueError):
        share = math.nan
    if not 0 <= share < math.inf:
        print("slow_reference.py: name the slowdown first, as a share of 0 or more, such as 0.05", file=sys.stderr)
        sys.exit(2)
    return share


if __name__ == "__main__":
    slow_down(share_of(sys.argv))
    sys.exit(main())
