"""Driving both builds in interleaved pairs until a planned look decides.

::

    for pair 0, 1, 2 ... in the order of the design
        run A, run B (or B, A): same requests, engine state reset before each
        void?  repeat the pair, at most twice
        at a planned look: judge; stop when decided
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.gate.builds import Build, Reset, plan_of
from harness.gate.cache_reset import reset_cache
from harness.gate.design import orders_of
from harness.gate.judge import counted_pairs, is_over, judge, void_share
from harness.gate.recorded import different_setups
from harness.gate.samples import SampleError, read_samples
from harness.gate.thresholds import Thresholds
from harness.gate.verify import MAX_ATTEMPTS
from harness.load.plan import RunPlan
from harness.results.gate import Arm, ArmInfo, GateRecord, JudgeSpec, PairRecord, RunSample, VerifiedPart
from harness.results.reader import RunReadError

# Pairs that are begun beyond the planned number, to replace those that stayed void.
SPARE_PAIRS = 1000
ARMS: dict[str, Arm] = {"A": "baseline", "B": "candidate"}


class RunFailed(Exception):
    """A run did not end well: the engine could not be started, or died.  ``code`` is the command line's exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


# Runs a plan into a directory; True when the user interrupted.  Raises RunFailed.
RunOnce = Callable[[RunPlan, Path], bool]


@dataclass
class Driver:
    """One gate in progress.  ``out`` gets one run directory a run; ``save`` is called after each pair."""

    builds: tuple[Build, Build]
    shared: dict[str, Any]  # of every run's plan: workload, load, lengths
    thresholds: Thresholds
    seed: int
    reset: Reset
    out: Path
    run_once: RunOnce
    note: Callable[[str], None]
    save: Callable[[GateRecord], None]
    tool_version: str
    created_utc: str
    command: list[str] = field(default_factory=list)
    api_key: str | None = None
    checks: list[VerifiedPart] = field(default_factory=list)
    _runs: dict[str, int] = field(default_factory=lambda: {"baseline": 0, "candidate": 0})
    _infos: dict[str, ArmInfo] = field(default_factory=dict)
    _spec: JudgeSpec | None = None
    _interrupted: bool = False

    def run(self) -> GateRecord:
        """Every pair until the gate is over.  Raises RunFailed when a build cannot be measured at all."""
        pairs: list[PairRecord] = []
        planned = self.thresholds.pairs.looks[-1]
        orders = orders_of(self.seed, planned + SPARE_PAIRS)
        index = 0
        while not self._interrupted and not self._is_over(pairs):
            for attempt in range(MAX_ATTEMPTS):
                pair = self._pair(index, orders[index], attempt)
                if pair is None:
                    break
                pairs.append(pair)
                self._tell(pair, len(counted_pairs(pairs)), planned)
                self.save(self.record(pairs))
                if not pair.is_void or self._is_over(pairs):
                    break
            index += 1
        return self.record(pairs)

    def _is_over(self, pairs: list[PairRecord]) -> bool:
        if any(check.verdict == "FAIL" for check in self.checks):  # then speed does not matter any more
            return True
        if self._spec is None:  # no baseline run counted yet
            return void_share(pairs) > self.thresholds.void.max_share
        return is_over(self._spec, pairs)

    def record(self, pairs: list[PairRecord]) -> GateRecord:
        """The gate so far, judged."""
        spec = self._spec or self.thresholds.spec([], [])
        infos = {arm: self._infos.get(arm, ArmInfo(where=self._where(arm))) for arm in ARMS.values()}
        warnings = different_setups(infos["baseline"], infos["candidate"])
        result = judge(spec, pairs, checks=self.checks, warnings=warnings, is_interrupted=self._interrupted)
        digests = pairs[0].baseline.digests if pairs else {}
        return GateRecord(
            tool_version=self.tool_version,
            created_utc=self.created_utc,
            mode="driven",
            seed=self.seed,
            command=self.command,
            baseline=infos["baseline"],
            candidate=infos["candidate"],
            workload={**self.shared, "reset": self.reset, "digests": digests},
            spec=spec,
            pairs=pairs,
            checks=self.checks,
            warnings=warnings,
            is_interrupted=self._interrupted,
            result=result,
        )

    def _where(self, arm: str) -> str:
        return next(build.where for build in self.builds if build.arm == arm)

    def _pair(self, index: int, order: str, attempt: int) -> PairRecord | None:
        """Both runs of one attempt; None when the user interrupted."""
        samples: dict[Arm, RunSample] = {}
        for letter in order:
            arm = ARMS[letter]
            sample = self._run(arm, index, attempt)
            if sample is None:
                return None
            samples[arm] = sample
        baseline, candidate = samples["baseline"], samples["candidate"]
        if baseline.digests and candidate.digests and baseline.digests != candidate.digests:
            raise SampleError(
                "the two builds were asked different requests, because their tokenizers or context lengths differ; give "
                "both the same --tokenizer and --max-model-len"
            )
        if self._spec is None and baseline.digests and not baseline.void:
            measured = {key for key, value in baseline.values.items() if value is not None}
            self._spec = self.thresholds.spec(list(baseline.digests), measured)
        return PairRecord.model_validate(
            {"index": index, "order": order, "attempt": attempt, "baseline": baseline, "candidate": candidate}
        )

    def _run(self, arm: Arm, index: int, attempt: int) -> RunSample | None:
        build = next(build for build in self.builds if build.arm == arm)
        name = f"pair-{index:03}-{attempt}-{arm}"
        plan = plan_of(
            build,
            self.shared,
            self.out,
            run=self._runs[arm],
            seed=self.seed,
            reset=self.reset,
            prompts=f"{index}/{attempt}",
        )
        if self.reset == "cache":
            reset_cache(build.where, self.api_key)
        self._runs[arm] += 1
        failure: RunFailed | None = None
        try:
            if self.run_once(plan, self.out / "runs" / name):
                self._interrupted = True
                return None
        except RunFailed as error:
            failure = error
        return self._read(arm, self.out / "runs" / name, failure)

    def _read(self, arm: Arm, path: Path, failure: RunFailed | None) -> RunSample:
        """The sample of a run directory.  A build that never worked ends the gate; one that breaks later voids the run."""
        try:
            samples, info = read_samples(path, arm, arm, self.thresholds.void)
        except (RunReadError, SampleError) as error:
            if failure is None or arm not in self._infos:
                raise failure or error from error
            samples = []
        if failure is not None and not samples and arm not in self._infos:
            raise failure
        if samples:
            sample = samples[0]
            self._infos.setdefault(arm, info.model_copy(update={"where": self._where(arm)}))
        else:
            sample = RunSample(arm=arm, source=str(path))
        sample.source = str(path.relative_to(self.out))
        if failure is not None:
            sentence = str(failure).splitlines()[0]
            sample.void.append(sentence)
            sample.broken.append(sentence)
        return sample

    def _tell(self, pair: PairRecord, counted: int, planned: int) -> None:
        void = [f"{sample.arm} void: {sample.void[0]}" for sample in (pair.baseline, pair.candidate) if sample.void]
        said = "; ".join(void) or "counts"
        self.note(
            f"pair {pair.index + 1}, attempt {pair.attempt + 1} ({pair.order}): {said}; {counted} of {planned} pairs"
        )
