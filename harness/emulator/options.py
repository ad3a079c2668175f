"""What an emulated engine is told to do: times, memory, errors.  Times are milliseconds, sizes tokens."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

Fault = Literal[
    "http_400", "http_429", "http_500", "http_503", "hang", "in_band", "reset", "close", "stall", "no_finish", "no_done"
]
FAULTS: tuple[str, ...] = get_args(Fault)
# Instead of the answer, in the middle of it; the two others spoil its end.
EARLY_FAULTS = frozenset({"http_400", "http_429", "http_500", "http_503", "hang"})
MIDWAY_FAULTS = frozenset({"in_band", "reset", "close", "stall"})


class EmulatorError(ValueError):
    """Options that make no sense.  The message names the option; users see it as it is."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScriptedAnswer(Strict):
    """One line of a script: what differs from the options for one answer.

    ``times_ms`` are the moments of the chunks after the request's arrival; after the last of them the answer goes on
    at ``itl_ms``.
    """

    ttft_ms: float | None = Field(default=None, ge=0)
    itl_ms: float | None = Field(default=None, ge=0)
    times_ms: tuple[float, ...] | None = None
    tokens: int | None = Field(default=None, ge=1)
    tokens_per_chunk: int | None = Field(default=None, ge=1)
    fault: Fault | None = None
    fault_after_tokens: int | None = Field(default=None, ge=0)

    @field_validator("times_ms")
    @classmethod
    def _in_order(cls, times: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if times is not None and (not times or times[0] < 0 or any(b < a for a, b in itertools.pairwise(times))):
            raise ValueError("times_ms must be moments in order, none below 0")
        return times


class EmulatorOptions(Strict):
    """Everything that ``pagedbench emulate`` can be told."""

    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)
    model: str = "emulated"
    ttft_ms: float = Field(default=50.0, ge=0)
    itl_ms: float = Field(default=20.0, ge=0)
    tokens: int = Field(default=128, ge=1)  # of an answer whose request does not say
    tokens_per_chunk: int = Field(default=1, ge=1)
    slowdown: float = Field(default=1.0, gt=0)  # factor on every time
    noise: float = Field(default=0.0, ge=0)  # coefficient of variation of a factor drawn once an answer
    jitter: float = Field(default=0.0, ge=0)  # the same, drawn for each chunk
    prefill_tokens_per_s: float | None = Field(default=None, gt=0)  # adds the prompt's share to TTFT; null: no share
    pacing: Literal["streams", "steps"] = "streams"
    itl_per_seq_ms: float = Field(default=0.0, ge=0)  # steps: what each running sequence adds to a step
    kv_tokens: int | None = Field(default=None, ge=1)  # slots of the pool; null: as many as asked for
    block_size: int = Field(default=16, ge=1)
    kv_bytes_per_token: int = Field(default=131_072, ge=1)
    max_num_seqs: int = Field(default=100_000, ge=1)
    max_waiting: int = Field(default=1_000_000, ge=0)
    max_model_len: int = Field(default=131_072, ge=2)
    faults: dict[Fault, float] = Field(default_factory=dict)  # share of the requests
    script: tuple[ScriptedAnswer, ...] = ()  # answers in the order of arrival, over again when they are used up
    seed: int = 0
    api_key: str | None = None

    @field_validator("faults")
    @classmethod
    def _shares(cls, faults: dict[Fault, float]) -> dict[Fault, float]:
        if any(not 0 <= share <= 1 for share in faults.values()) or sum(faults.values()) > 1 + 1e-9:
            raise ValueError("shares of faults must lie between 0 and 1 and add up to at most 1")
        return faults


def make_options(**values: object) -> EmulatorOptions:
    """Options from plain values.  Raises :class:`EmulatorError` with one sentence."""
    try:
        return EmulatorOptions.model_validate(values)
    except ValidationError as error:
        raise EmulatorError(_sentence(error)) from None


def load_script(file: Path) -> tuple[ScriptedAnswer, ...]:
    """A script: JSON Lines, an object an answer (see :class:`ScriptedAnswer`).  Raises :class:`EmulatorError`."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EmulatorError(f"cannot read the script {file}: {error}") from None
    answers = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            answers.append(ScriptedAnswer.model_validate(json.loads(line)))
        except ValidationError as error:
            raise EmulatorError(f"{file} line {number}: {_sentence(error)}") from None
        except ValueError as error:
            raise EmulatorError(f"{file} line {number} is not JSON: {error}") from None
    if not answers:
        raise EmulatorError(f"the script {file} holds no answer")
    return tuple(answers)


def parse_faults(texts: list[str]) -> dict[str, float]:
    """``KIND=SHARE`` texts as a mapping.  Raises :class:`EmulatorError`."""
    faults: dict[str, float] = {}
    for text in texts:
        kind, _, share = text.partition("=")
        if kind not in FAULTS:
            raise EmulatorError(f"--fault {text!r}: there is no fault {kind!r}; choose one of {', '.join(FAULTS)}")
        try:
            faults[kind] = float(share)
        except ValueError:
            raise EmulatorError(f"--fault {text!r} should read KIND=SHARE, such as in_band=0.01") from None
    return faults


def _sentence(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
