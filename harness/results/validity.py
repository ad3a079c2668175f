"""When a cell may be believed.  The rules are data: a measure, two thresholds, a sentence; every one of them is
evaluated.

A measure that could not be taken is null.  Most rules then stay silent, because there is nothing to judge; where the
absence is itself a weakness (telemetry that should have been there), the measure is a share that says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.results.schema import Validity

Measures = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Rule:
    """Fires when the measure exceeds a threshold: ``invalid`` first, else ``suspect``; null: never to that degree.

    ``sentence`` is filled with ``value`` (and the other measures by name).  ``is_answer``: what it looks at is the
    engine's own answer to the load (requests that it failed), and no weakness of the measurement.
    """

    measure: str
    suspect: float | None
    invalid: float | None
    sentence: str
    is_answer: bool = False

    def says(self, measures: Measures) -> str:
        """The sentence.  The measure must be known."""
        numbers = {name: number for name, number in measures.items() if number is not None}
        return self.sentence.format(value=numbers[self.measure], **numbers)

    def invalidates(self, measures: Measures) -> bool:
        value = measures.get(self.measure)
        return value is not None and self.invalid is not None and value > self.invalid


RULES: tuple[Rule, ...] = (
    Rule("no_success", None, 0.5, "no request succeeded"),
    Rule("failed_to_finish", None, 0.5, "the cell ended before its time: the engine or the harness failed"),
    Rule("interrupted", 0.5, None, "the run was interrupted; only what had finished is counted"),
    Rule("ran_dry", 0.5, None, "the schedule ran out of requests before the asked duration; raise --num-requests"),
    Rule("error_share", 0.01, 0.10, "{value:.1%} of the requests failed", is_answer=True),
    Rule("lateness_ms_p99", 10.0, 100.0, "requests left late: p99 {value:.1f} ms after their planned time, from "
         "{late_from_s:.1f} s on"),
    Rule("rate_shortfall", 0.02, 0.10, "the arrival rate was {value:.1%} below the schedule"),
    Rule("concurrency_shortfall", 0.03, 0.15, "on average {value:.1%} of the asked requests in flight were missing"),
    Rule("lag_share", 0.10, 0.50, "the client's event loop was late by p99 {lag_ms_p99:.1f} ms, {value:.0%} of "
         "the shortest time it reports"),
    # Each such chunk makes one gap too long.  Half a percent of those moves an ITL p99; of a twentieth, p95 is made.
    Rule("blurred_chunks", 0.005, 0.05, "the client was so late that {value:.1%} of the chunks were read together with "
         "others and bear their time: times between chunks are bent"),
    Rule("foreign_processes", 0.5, None, "{value:.0f} other processes used the engine's GPU"),
    Rule("foreign_cpu", 0.20, 0.50, "other processes used {value:.0%} of the CPUs that the engine ran on"),
    Rule("stolen_cpu", 0.05, 0.50, "the hypervisor gave {value:.0%} of the CPUs' time to other guests"),
    Rule("clock_steps", 0.5, None, "the machine's real-time clock was stepped {value:.0f} times while bytes were stamped"),
    Rule("throttled_share", 0.05, 0.50, "the GPU's clocks were held down (heat, power brake) {value:.0%} of the time"),
    Rule("client_cpu_percent", 80.0, 95.0, "the client used {value:.0f} % of a core, it may be the bottleneck"),
    Rule("length_mismatch", 0.01, None, "{value:.1%} of the answers do not have their planned length"),
    Rule("prompt_mismatch", 0.02, None, "prompts came to {value:.1%} more or fewer tokens than planned"),
    Rule("counted_by_chunks", 0.01, None, "{value:.0%} of the answers have no token count; their chunks were counted"),
    Rule("unmeant_prefix_hits", 0.05, 0.50, "{value:.1%} of the prompt tokens came from a cache that the workload did "
         "not mean to fill"),
    Rule("missed_prefix_hits", 0.05, None, "the prefix cache gave {value:.1%} of the prompt tokens less than the "
         "workload's target"),
    Rule("telemetry_missing", 0.20, None, "{value:.0%} of the engine's metric samples are missing"),
)  # fmt: skip


def judge(measures: Measures) -> tuple[Validity, list[str]]:
    """The validity of a cell and a sentence for every rule that fired, the gravest first."""
    invalid, suspect = [], []
    for rule in RULES:
        value = measures.get(rule.measure)
        if value is None:
            continue
        if rule.invalidates(measures):
            invalid.append(rule.says(measures))
        elif rule.suspect is not None and value > rule.suspect:
            suspect.append(rule.says(measures))
    verdict: Validity = "INVALID" if invalid else "SUSPECT" if suspect else "VALID"
    return verdict, invalid + suspect


def disbelief(measures: Measures) -> str | None:
    """Why a cell says nothing about its engine, or None.

    An INVALID cell is not to be believed, except where all that makes it so is the engine's own answer: that some of
    its requests failed is measured, and true.
    """
    return next((rule.says(measures) for rule in RULES if rule.invalidates(measures) and not rule.is_answer), None)
