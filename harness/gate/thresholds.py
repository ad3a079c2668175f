"""The one file beside the user's code that says what a gate judges, and by how much it may get worse.

Strict: an unknown key is an error that names the nearest known one.  Shares are written as percentages (``2%``), so that
nobody has to guess what a bare ``2`` means.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from harness.gate.catalogue import DEFAULT_MEMORY, DEFAULT_TIMING, METRICS
from harness.gate.spending import DEFAULT_LOOKS, FAIL_RATE, PASS_RATE, plan_for
from harness.results.gate import JudgeSpec, RuleSpec

DEFAULT_FILE = "pagedbench-gate.yaml"


class ThresholdsError(ValueError):
    """A thresholds file that cannot be used.  The message names the key and what to do; users see it as it is."""


def parse_share(value: object) -> float:
    """``2%`` or ``0.5 %`` as a fraction."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"write a percentage such as 2%, not {value!r}")
    return float(match[1]) / 100


Share = Annotated[float, BeforeValidator(parse_share)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class MetricAsked(Strict):
    limit: Share | None = None
    if_missing: Literal["fail", "skip"] = "fail"


class PairsAsked(Strict):
    looks: list[int] = Field(default_factory=lambda: list(DEFAULT_LOOKS), min_length=1)

    @field_validator("looks")
    @classmethod
    def _rising(cls, looks: list[int]) -> list[int]:
        plan_for(looks)
        if looks[-1] > 200:
            raise ValueError(f"at most 200 pairs are planned for, not {looks[-1]}")
        return looks


class RatesAsked(Strict):
    fail: Share = Field(default=FAIL_RATE, gt=0, lt=0.5)
    clear: Share = Field(default=PASS_RATE, gt=0, lt=0.5)


class VoidAsked(Strict):
    """When a run does not count.  ``foreign_cpu``: share of the CPUs that other processes used; null: not looked at."""

    max_share: Share = 0.20
    error_share: Share = 0.001
    foreign_cpu: Share | None = 0.20


class Thresholds(Strict):
    """The whole file; every key has a default."""

    metrics: dict[str, MetricAsked] = Field(default_factory=dict)
    pairs: PairsAsked = Field(default_factory=PairsAsked)
    rates: RatesAsked = Field(default_factory=RatesAsked)
    void: VoidAsked = Field(default_factory=VoidAsked)
    answers: Literal["identical", "report"] = "identical"
    benchmark_limit: Share = 0.05  # of each benchmark in files of pytest-benchmark

    @field_validator("metrics", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        """``itl_p50: 2%`` is short for ``itl_p50: {limit: 2%}``; an empty value takes the default limit."""
        if not isinstance(value, Mapping):
            raise ValueError("metrics must map names to limits, such as itl_p50: 2%")
        for name in value:
            if name not in METRICS:
                raise ValueError(f"unknown metric {name!r}; {nearest(str(name), METRICS)}")
        return {
            name: asked if isinstance(asked, Mapping) else {} if asked is None else {"limit": asked}
            for name, asked in value.items()
        }

    def spec(self, cells: Sequence[str], measured: Iterable[str]) -> JudgeSpec:
        """The rules for ``cells``.  ``measured``: keys (cell/metric) with a value somewhere in the baseline."""
        known = set(measured)
        rules = []
        for cell in cells:
            for name, asked in self._asked(cell, known).items():
                metric = METRICS[name]
                rules.append(
                    RuleSpec(
                        metric=name,
                        cell=cell,
                        label=metric.label if len(cells) == 1 else f"{metric.label}, {cell}",
                        unit=metric.unit,
                        better=metric.better,
                        kind=metric.kind,
                        limit=metric.limit if asked.limit is None else asked.limit,
                        min_samples=metric.min_samples,
                        if_missing=asked.if_missing,
                    )
                )
        return JudgeSpec(
            looks=self.pairs.looks,
            fail_rate=self.rates.fail,
            pass_rate=self.rates.clear,
            max_void_share=self.void.max_share,
            answers=self.answers,
            rules=rules,
        )

    def _asked(self, cell: str, known: set[str]) -> dict[str, MetricAsked]:
        if self.metrics:
            return self.metrics
        memory = [name for name in DEFAULT_MEMORY if f"{cell}/{name}" in known]
        chosen = {name: MetricAsked() for name in DEFAULT_TIMING}
        chosen[memory[0] if memory else DEFAULT_MEMORY[0]] = MetricAsked(if_missing="skip")
        return chosen


def load_thresholds(file: Path) -> Thresholds:
    """Read and check a thresholds file.  Raises ThresholdsError with one sentence."""
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ThresholdsError(f"cannot read {file}: {error.strerror}; `pagedbench gate --init` writes one") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ThresholdsError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise ThresholdsError(f"{file} must hold a mapping with the keys {', '.join(Thresholds.model_fields)}")
    try:
        return Thresholds.model_validate(document)
    except ValidationError as error:
        raise ThresholdsError(f"{file}: {_sentence(error)}") from None


def nearest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def _sentence(error: ValidationError) -> str:
    """The first problem in words, with the nearest known key when one is unknown."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("function-"))
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where!r}; {nearest(str(problem['loc'][-1]), _keys_at(problem['loc'][:-1]))}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return message if problem["loc"] == ("metrics",) else f"{where or 'the file'}: {message}"


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    models: dict[str, type[BaseModel]] = {
        "metrics": MetricAsked,
        "pairs": PairsAsked,
        "rates": RatesAsked,
        "void": VoidAsked,
    }
    return list((models[str(location[0])] if location else Thresholds).model_fields)


def commented_file() -> str:
    """What ``pagedbench gate --init`` writes: the defaults, explained."""
    width = max(map(len, METRICS)) + 1
    shown = [*DEFAULT_TIMING, DEFAULT_MEMORY[0]]
    lines = [f"  {name + ':':<{width}} {_text(METRICS[name].limit):<5} # {METRICS[name].label}" for name in shown]
    last = METRICS[shown[-1]]
    lines[-1] = f"  {last.name + ':':<{width}} {{limit: {_text(last.limit)}, if_missing: skip}}  # {last.label}"
    others = [
        f"  # {name + ':':<{width}} {_text(metric.limit):<5} # {metric.label} [{metric.unit}]"
        for name, metric in METRICS.items()
        if name not in shown
    ]
    return TEMPLATE.format(
        metrics="\n".join(lines),
        others="\n".join(others),
        looks=", ".join(map(str, DEFAULT_LOOKS)),
        answers=" or ".join(get_args(Thresholds.model_fields["answers"].annotation)),
        last=DEFAULT_LOOKS[-1],
    )


def _text(share: float) -> str:
    return f"{100 * share:g}%"


TEMPLATE = """\
# What `pagedbench gate` judges.  Every key may be left out; what stands here are the defaults.  See docs/gate.md.

# A change for the worse beyond its limit fails the gate, if it is also significant.  A metric passes when its upper bound
# lies below the limit.  Fewer metrics are found sooner: the error rate is shared among them.
metrics:
{metrics}
  # A metric that is not measured fails, unless it is missing in both builds and says `if_missing: skip`.
{others}

# Pairs of runs (baseline, candidate) after which the gate looks at the data; it stops at the first that decides.
# These looks have simulated error rates.  `looks: [{last}]` looks once.
pairs:
  looks: [{looks}]

rates:
  fail: 1%    # of equal builds fail at most, all metrics and looks together
  clear: 5%   # of builds exactly at a limit pass at most, a metric

# A run that cannot be trusted is repeated at most twice and never counted as slow.
void:
  max_share: 20%     # more void attempts than this: INCONCLUSIVE
  error_share: 0.1%  # failed requests
  foreign_cpu: 20%   # of the CPUs, used by other processes; null: do not look

# {answers}: whether a candidate whose answers differ from all of the baseline's (which agree among themselves) fails.
answers: identical

benchmark_limit: 5%  # each benchmark of `pagedbench gate --pytest-benchmark`
"""
