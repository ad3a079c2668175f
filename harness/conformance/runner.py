"""Runs cases one after another against one engine and turns whatever happens into verdicts.

Every case ends with exactly one of the six verdicts: a hanging, dying or lying server is a finding, never a traceback.
When the engine no longer answers at all the run stops, keeps what was found and says so.
"""

from __future__ import annotations

import asyncio
import datetime
import random
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from importlib.metadata import version
from typing import Protocol

from harness.conformance.api import Api, Log
from harness.conformance.case import Case, Failed, Inconclusive, NonStrict, Outcome, Unsupported
from harness.conformance.cases import all_cases
from harness.conformance.context import Context, Options
from harness.conformance.features import Features
from harness.conformance.limits import limits_of_engine
from harness.conformance.prompts import Prompts
from harness.conformance.questions import find_features, served_model
from harness.conformance.sentinel_asks import SentinelAsks, SentinelPrompts, is_sentinel
from harness.results.conformance import CaseResult, Status, SuiteResult, Verdict, exit_code_of

ALIVE_LIMIT_S = 15.0
ALIVE_TRIES = 2

_VERDICTS: tuple[tuple[type[Outcome], Verdict], ...] = (
    (NonStrict, "NON-STRICT"),
    (Unsupported, "UNSUPPORTED"),
    (Inconclusive, "INCONCLUSIVE"),
    (Failed, "FAIL"),
)


class UnknownCaseError(ValueError):
    """A case or family that does not exist was asked for."""


class Watcher(Protocol):
    """Told about progress."""

    def begin(self, case: Case, number: int, total: int) -> None: ...

    def end(self, case: Case, result: CaseResult) -> None: ...


def select(ids: Iterable[str] | None, options: Options) -> list[Case]:
    """Cases by id, family or ``FAM-*``, in the order of the catalogue.  Raises UnknownCaseError."""
    cases = all_cases()
    asked = [part.strip().upper() for part in ids or [] if part.strip()]
    for part in asked:
        if part not in cases and not any(case.family == part.removesuffix("-*") for case in cases.values()):
            raise UnknownCaseError(f"there is no case or family {part!r}; pagedbench conform --list shows them all")
    chosen = []
    for case in cases.values():
        if asked:
            if case.id in asked or case.family in asked or f"{case.family}-*" in asked:
                chosen.append(case)
        elif (options.soak or not case.soak) and (case.structural or not options.structural_only):
            chosen.append(case)
    return [case for case in chosen if case.level in options.levels]


async def run_suite(
    engine_url: str,
    case_ids: Iterable[str] | None = None,
    options: Options | None = None,
    watcher: Watcher | None = None,
) -> SuiteResult:
    """Run cases against the server at ``engine_url``.

    Raises UnreachableError when there is no OpenAI API, UnknownCaseError for wrong ids; whatever the engine does after
    that ends in the result.  Cancelling keeps what was found: the result then says ``interrupted``.
    """
    options = options or Options()
    suite = Suite(engine_url, select(case_ids, options), options, watcher)
    return await suite.run()


class Suite:
    """One run."""

    def __init__(self, url: str, cases: Sequence[Case], options: Options, watcher: Watcher | None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.cases = cases
        self.options = options
        self.watcher = watcher
        self.results: list[CaseResult] = []
        self.notes: list[str] = []

    async def run(self) -> SuiteResult:
        options = self.options
        started = datetime.datetime.now(datetime.UTC)
        clock = time.monotonic()
        features = options.known_features or await find_features(
            self.url,
            name=options.name,
            model=options.model,
            api_key=options.api_key,
            timeout_s=min(options.timeout_s, 30.0),
            known=options.known_probe,
        )
        status: Status = "complete"
        reason = ""
        async with AsyncExitStack() as stack:
            api = await stack.enter_async_context(
                Api(self.url, features.info.model, api_key=options.api_key, timeout_s=options.timeout_s)
            )
            setting = await Setting.make(api, features, options, stack, self.notes)
            try:
                status, reason = await self._run_all(setting)
            except asyncio.CancelledError:
                status, reason = "interrupted", "stopped by the user"
        return SuiteResult(
            tool_version=version("pagedbench"),
            started=started.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - clock, 2),
            status=status,
            status_reason=reason,
            engine=features.info,
            features={**features.document(), "limits": setting.limits.name},
            options={
                "seed": options.seed,
                "effort": options.effort,
                "timeout_s": options.timeout_s,
                "levels": list(options.levels),
                "reference": options.reference_url is not None,
                "strict": options.strict,
            },
            results=self.results,
            notes=self.notes,
            exit_code=exit_code_of(self.results, status, strict=options.strict),
        )

    async def _run_all(self, setting: Setting) -> tuple[Status, str]:
        for number, case in enumerate(self.cases, 1):
            if self.watcher is not None:
                self.watcher.begin(case, number, len(self.cases))
            result = await run_case(case, setting)
            self.results.append(result)
            if self.watcher is not None:
                self.watcher.end(case, result)
            if was_cut(result) and not await is_alive(setting.api, setting.features):
                left = len(self.cases) - number
                return "lost", f"the engine stopped answering in case {case.id}; {left} cases were not run"
        return "complete", ""


class Setting:
    """What all cases of a run share."""

    def __init__(
        self,
        api: Api,
        features: Features,
        options: Options,
        reference: Api | None,
        tokenizers: list[Api],
        prompts: Prompts,
    ) -> None:
        self.api = api
        self.features = features
        self.options = options
        self.reference = reference
        self.tokenizers = tokenizers
        self.prompts = prompts
        self.limits = limits_of_engine(features.info, options.dtype, options.kv_dtype)
        self.sentinel = SentinelAsks(takes_ids=prompts.takes_ids) if is_sentinel(features.info) else None

    @classmethod
    async def make(
        cls, api: Api, features: Features, options: Options, stack: AsyncExitStack, notes: list[str]
    ) -> Setting:
        reference = None
        if options.reference_url is not None:
            model = await served_model(options.reference_url, options.timeout_s)
            reference = await stack.enter_async_context(
                Api(options.reference_url, model, timeout_s=max(options.timeout_s, 120.0))
            )
            features.names.add("reference")
        tokenizers = [api] if features.has("tokenize") else []
        if reference is not None:
            tokenizers.append(reference)
            features.names.add("tokenize")
        kind = SentinelPrompts if is_sentinel(features.info) else Prompts
        prompts = await kind.make(tokenizers, takes_ids=features.has("id_prompts"))
        if features.has("id_prompts") and not prompts.takes_ids:
            features.names.discard("id_prompts")
            features.unknown.add("id_prompts")
            notes.append("nothing tokenizes for this engine, so prompts are words and their lengths approximate")
        if features.has("echo_logprobs", "id_prompts") or reference is not None:
            features.names.add("scorer")
        if (features.max_num_seqs or 2) > 1:  # not told: taken for granted
            features.names.add("company")
        if options.restart is not None:
            features.names.add("restart")
        setting = cls(api, features, options, reference, tokenizers, prompts)
        if setting.sentinel is not None:
            features.names.add("sentinel")
        return setting

    def context_of(self, case: Case) -> Context:
        self.api.log = Log()
        return Context(
            case=case,
            api=self.api,
            features=self.features,
            prompts=self.prompts,
            limits=self.limits,
            options=self.options,
            reference=self.reference,
            tokenizers=self.tokenizers,
            sentinel=self.sentinel,
            rng=random.Random(f"{self.options.seed} {case.id}"),
        )


async def run_case(case: Case, setting: Setting) -> CaseResult:
    """One case to its verdict.  Only cancellation gets out of here."""
    context = setting.context_of(case)
    start = time.monotonic()
    verdict: Verdict = "PASS"
    reason = "held"
    evidence: dict[str, object] = {}
    missing = setting.features.missing(case.needs)
    limit_s = case.limit_s
    try:
        if missing:
            raise Unsupported(f"the engine offers no {' and no '.join(missing)}")
        async with asyncio.timeout(limit_s):
            await case.body(context)
    except Outcome as outcome:
        verdict = next(verdict for kind, verdict in _VERDICTS if isinstance(outcome, kind))
        reason, evidence = outcome.reason, outcome.evidence
    except TimeoutError:
        verdict, reason = "INCONCLUSIVE", f"the case did not end within its {limit_s:g} s"
    except ExceptionGroup as group:
        verdict, reason = "ERROR", f"the suite failed: {type(group.exceptions[0]).__name__}: {group.exceptions[0]}"
    except Exception as error:
        verdict, reason = "ERROR", f"the suite failed: {type(error).__name__}: {error}"
    return CaseResult(
        id=case.id,
        family=case.family,
        level=case.level,
        title=case.title,
        source=case.source,
        needs=list(case.needs),
        oracle=case.oracle,
        rungs=context.rungs or ([case.oracle] if verdict in ("PASS", "FAIL", "NON-STRICT") else []),
        evidence_rule=case.evidence,
        kills=list(case.kills),
        verdict=verdict,
        reason=reason,
        evidence={**context.evidence, **evidence},
        exchanges=setting.api.log.records(),
        seconds=round(time.monotonic() - start, 3),
        replay=f"{setting.options.replay} --cases {case.id}".strip(),
    )


def was_cut(result: CaseResult) -> bool:
    """Whether a call of this case got no HTTP answer, so that the engine may be gone."""
    return (
        any(exchange.status is None or exchange.error for exchange in result.exchanges)
        or "did not end" in result.reason
    )


async def is_alive(api: Api, features: Features) -> bool:
    """Whether the engine still gives a short answer."""
    for _ in range(ALIVE_TRIES):
        if features.has("completions"):
            path, body = "/v1/completions", {"prompt": "Hello", "max_tokens": 1}
        else:
            path, body = "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
        reply = await api.post(path, body, timeout_s=min(ALIVE_LIMIT_S, api.timeout_s))
        if reply.status is not None:
            return True
        await asyncio.sleep(1.0)
    return False
