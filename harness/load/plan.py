"""What a run was asked to do: the same strict document whether it came from options or from a YAML file."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from harness.load.limits import Timeouts
from harness.load.ray_address import parse_workers
from harness.load.search import MaxSearch
from workloads.registry import make_workload, parse_workload
from workloads.request import Load, WorkloadError
from workloads.workload import Workload, parameters, split_spec

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
MAX_WORKERS = 256
SLO_METRICS = ("ttft", "tpot", "e2e")


class PlanError(ValueError):
    """A plan that cannot be run.  The message names the option or key and what to do; users see it as it is."""


class PlanModel(BaseModel):
    model_config = ConfigDict(extra="forbid")


class EngineAsked(PlanModel):
    """An engine: where it is (``url``) or how to launch it (``recipe`` with ``settings``).

    ``kv_tokens`` and ``kv_bytes_per_token`` are facts about its KV pool, for engines that do not tell them.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")
    url: str | None = None
    replicas: list[str] = Field(default_factory=list)  # more servers of the same engine; they take turns with url
    recipe: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    model: str | None = None
    extra_body: dict[str, Any] = Field(default_factory=dict)
    share_device: bool = False  # launch although another engine of ours is on the GPUs
    kv_tokens: int | None = Field(None, ge=1)
    kv_bytes_per_token: int | None = Field(None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return parse_engine(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_way(self) -> EngineAsked:
        if (self.url is None) == (self.recipe is None):
            raise ValueError(f"engine {self.name!r} needs either a url or a recipe")
        if self.replicas and self.url is None:
            raise ValueError(f"engine {self.name!r} has replicas but no url")
        return self

    @field_validator("url")
    @classmethod
    def _http(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("http://", "https://")):
            raise ValueError(f"the URL {url!r} must begin with http:// or https://")
        return url

    @field_validator("replicas")
    @classmethod
    def _all_http(cls, urls: list[str]) -> list[str]:
        for url in urls:
            cls._http(url)
        return urls


class WorkloadAsked(PlanModel):
    """A workload by name with its parameters.  ``num_requests`` or ``rounds`` here win over the plan's own number."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    num_requests: int | None = Field(default=None, ge=1)  # of each cell
    rounds: int | None = Field(default=None, ge=1)  # requests for each slot of a closed loop

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            name, values = split_spec(value)
            return {"name": name, "parameters": values}
        return value

    @model_validator(mode="after")
    def _known(self) -> WorkloadAsked:
        self.make()
        return self

    def make(self) -> Workload:
        return make_workload(self.name, self.parameters)


class TimeoutsAsked(PlanModel):
    """Limits of one request, seconds."""

    connect: float = Field(default=10.0, gt=0)
    first: float = Field(default=300.0, gt=0)
    idle: float = Field(default=120.0, gt=0)
    total: float = Field(default=1800.0, gt=0)

    def timeouts(self) -> Timeouts:
        return Timeouts(self.connect, self.first, self.idle, self.total)


class FindMax(PlanModel):
    """A search for the highest rate or concurrency at which enough requests meet every SLO."""

    over: Literal["rate", "concurrency"]
    attainment: float = Field(0.95, gt=0, lt=1)  # share of the requests that must meet every SLO
    confidence: float = Field(0.95, gt=0.5, lt=1)  # of the Wilson interval that must clear it
    start: float = Field(1.0, gt=0)  # requests/s or requests in flight
    limit: float = Field(1024.0, gt=0)
    precision: float = Field(0.1, gt=0, lt=1)  # how much higher the truth may be, as a share; concurrency: exact to 1
    tries: int = Field(3, ge=1)  # cells at a level before it counts as not shown

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"over": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _ordered(self) -> FindMax:
        if self.start > self.limit:
            raise ValueError(f"find_max starts at {self.start:g}, above its limit {self.limit:g}")
        if self.over == "concurrency" and (self.start < 1 or self.start != int(self.start)):
            raise ValueError("find_max over concurrency starts at a whole number of 1 or more")
        return self

    def search(self) -> MaxSearch:
        return MaxSearch(**self.model_dump())


class VerifyAsked(PlanModel):
    """Answers of the loaded run itself are kept and judged once the engine is idle again."""

    answers: int = Field(16, ge=1, le=10_000)  # of each cell
    reference_model: str | None = None  # for a naive fp32 engine that scores them: directory, .gguf or built-in name
    reference_url: str | None = None  # such an engine that already runs

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        if value is True:
            return {}
        return {"answers": value} if isinstance(value, int) else value

    @model_validator(mode="after")
    def _one_reference(self) -> VerifyAsked:
        if self.reference_model and self.reference_url:
            raise ValueError("reference_model and reference_url both name the reference; give one of them")
        return self


class RunPlan(PlanModel):
    """A whole run.  Every engine is asked the same."""

    engines: list[EngineAsked] = Field(min_length=1)
    workloads: list[WorkloadAsked] = Field(default_factory=lambda: [WorkloadAsked(name="chat")], min_length=1)
    concurrency: list[int] = Field(default_factory=list)  # replaces the workloads' own levels
    rate: list[float] = Field(default_factory=list)  # requests/s; likewise
    arrivals: Literal["poisson", "constant", "gamma", "ramp"] = "poisson"  # how a rate is planned
    burstiness: float = Field(1.0, gt=0)  # gamma: shape; below 1 in bursts
    ramp_to: float | None = Field(None, gt=0)  # ramp: requests/s at the end
    ramp_steps: int = Field(0, ge=0)  # ramp: stretches of equal length; 0: a straight line
    duration: float | None = Field(None, gt=0)  # seconds of each cell
    num_requests: int | None = Field(None, ge=1)  # of each cell
    warmup: int = Field(0, ge=0)  # requests before the measured ones
    repeats: int = Field(1, ge=1)
    seed: int = 0
    slo: dict[str, float] = Field(default_factory=dict)  # ms
    find_max: FindMax | None = None  # instead of load levels
    tokenizer: Path | None = None
    max_model_len: int | None = Field(None, ge=16)  # tokens; the engines' own limit where not given
    timeouts: TimeoutsAsked = TimeoutsAsked()
    verify_tls: bool = True
    headers: dict[str, str] = Field(default_factory=dict)  # of every request
    transport: Literal["native", "aiohttp"] = "native"
    telemetry: bool = True  # false: nothing is sampled beside the load (to see what sampling costs)
    verify: VerifyAsked | None = None  # true, or a number of answers, or a mapping
    workers: int | str = Field(1)  # processes that drive the load, or ray[://HOST:PORT][,N]

    @field_validator("concurrency", "rate", "engines", "workloads", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return value if isinstance(value, list) else [value]

    @field_validator("workers", mode="after")
    @classmethod
    def _known_workers(cls, workers: int | str) -> int | str:
        if isinstance(workers, str) and workers.strip().isdigit():
            workers = int(workers)
        if isinstance(workers, str):
            parse_workers(workers)
        elif not 1 <= workers <= MAX_WORKERS:
            raise ValueError(f"workers must be 1 to {MAX_WORKERS}, or ray[://HOST:PORT][,N], not {workers}")
        return workers

    @field_validator("slo", mode="after")
    @classmethod
    def _known_slo(cls, slo: dict[str, float]) -> dict[str, float]:
        for name, limit in slo.items():
            if name not in SLO_METRICS:
                raise ValueError(f"SLO {name!r} is not one of {', '.join(SLO_METRICS)}")
            if not limit > 0:
                raise ValueError(f"the SLO on {name} must be above 0 ms, not {limit}")
        return slo

    @model_validator(mode="after")
    def _consistent(self) -> RunPlan:
        names = [engine.name for engine in self.engines]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two engines are called {twice!r}; give each its own name")
        loads = self.explicit_loads()
        if self.find_max is not None:
            if not self.slo:
                raise ValueError("find_max needs at least one SLO: --slo ttft:500, or slo: {ttft: 500}")
            if loads:
                raise ValueError(f"find_max chooses the {self.find_max.over} itself; leave out concurrency and rate")
            if self.repeats != 1:
                raise ValueError("find_max repeats levels itself, as often as it needs; leave out repeats")
        return self

    def explicit_loads(self) -> tuple[Load, ...]:
        """The load levels that the user named, which then hold for every workload."""
        closed = [Load("closed", concurrency=level) for level in self.concurrency]
        return (*closed, *(self._planned(rate) for rate in self.rate))

    def _planned(self, rate: float) -> Load:
        match self.arrivals:
            case "gamma":
                return Load("gamma", rate=rate, burstiness=self.burstiness)
            case "ramp":
                return Load("ramp", rate=rate, ramp_to=self.ramp_to, ramp_steps=self.ramp_steps)
        return Load(self.arrivals, rate=rate)

    def loads_of(self, workload: Workload) -> tuple[Load, ...]:
        return self.explicit_loads() or workload.loads()


def parse_engine(text: str) -> dict[str, Any]:
    """``NAME=URL[,URL...]`` or ``NAME=recipe:KIND[,key=value...]`` as the fields of :class:`EngineAsked`."""
    name, equals, rest = text.partition("=")
    if not equals or not name or not rest or "://" in name:
        raise PlanError(f"--engine {text!r} should read NAME=URL or NAME=recipe:KIND[,key=value...]")
    if not rest.startswith("recipe:"):
        url, *replicas = re.split(r",(?=https?://)", rest)
        return {"name": name, "url": url, **({"replicas": replicas} if replicas else {})}
    # A comma inside a value is written \, as everywhere that recipes are named.
    kind, *pairs = [part.replace("\0", ",") for part in rest.removeprefix("recipe:").replace("\\,", "\0").split(",")]
    settings: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise PlanError(f"{pair!r} in --engine {text!r} should read key=value")
        settings[key.strip()] = value
    return {"name": name, "recipe": kind, "settings": settings}


def parse_slo(texts: list[str]) -> dict[str, float]:
    """``ttft:500`` or ``ttft=500``, several in one text separated by spaces or commas, as limits in ms."""
    limits: dict[str, float] = {}
    for part in " ".join(texts).replace(",", " ").split():
        name, _, limit = part.replace("=", ":").partition(":")
        try:
            limits[name] = float(limit)
        except ValueError:
            raise PlanError(f"--slo {part!r} should read METRIC:MILLISECONDS, such as ttft:500") from None
    return limits


def make_plan(values: dict[str, Any], source: str) -> RunPlan:
    """A plan from plain values.  Raises :class:`PlanError` with one sentence that names ``source`` and the key."""
    try:
        return RunPlan.model_validate(values)
    except ValidationError as error:
        raise PlanError(f"{source}: {_sentence(error)}") from None
    except (WorkloadError, PlanError) as error:
        raise PlanError(str(error)) from None


def load_plan(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"cannot read {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PlanError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise PlanError(f"{file} must hold a mapping with the keys engines, workloads, ...")
    return {key: fill_variables(value, file) for key, value in document.items()}


def fill_variables(value: Any, file: Path) -> Any:
    """Replace ``${NAME}`` in every text by the environment variable.  Raises :class:`PlanError` when there is none."""
    if isinstance(value, dict):
        return {key: fill_variables(part, file) for key, part in value.items()}
    if isinstance(value, list):
        return [fill_variables(part, file) for part in value]
    if not isinstance(value, str):
        return value

    def word(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise PlanError(f"{file} needs the environment variable {match[1]}, which is not set")
        return os.environ[match[1]]

    return VARIABLE.sub(word, value)


def check_workload(spec: str) -> Workload:
    """The workload of a command-line spec.  Raises :class:`PlanError`."""
    try:
        return parse_workload(spec)
    except WorkloadError as error:
        raise PlanError(str(error)) from None


def workload_parameters(workload: Workload) -> dict[str, Any]:
    """Parameters as plain JSON values."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in parameters(workload).items()}


def _sentence(error: ValidationError) -> str:
    """The first problem in words, with the nearest known key when one is unknown."""
    problems = error.errors()
    # A misspelt key is also missing under its right name: the first says more.
    problem = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        key = str(problem["loc"][-1])
        near = difflib.get_close_matches(key, _known_keys(problem["loc"][:-1]), n=1)
        return f"unknown key {where!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where and problem["type"] != "value_error" else message


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    parts: dict[str, type[BaseModel]] = {
        "engines": EngineAsked,
        "workloads": WorkloadAsked,
        "timeouts": TimeoutsAsked,
        "find_max": FindMax,
        "verify": VerifyAsked,
    }
    model = parts.get(str(location[0]), RunPlan) if location else RunPlan
    return list(model.model_fields)
