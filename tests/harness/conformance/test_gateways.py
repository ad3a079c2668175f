"""A sound engine behind a gateway that withholds, limits or dresses something: no case fails for that."""

from __future__ import annotations

from pathlib import Path

import pytest
from gateways import Gateway, before

from harness.conformance.context import Options
from harness.conformance.runner import run_suite
from harness.engines.catalogue import find
from harness.engines.launch import launched
from harness.results.conformance import SuiteResult

SETTINGS = {
    "model": "sentinel",
    "kv_blocks": 192,
    "block_size": 16,
    "max_model_len": 2048,
    "max_num_seqs": 16,
    "max_num_batched_tokens": 128,
    "threads": 1,
}
WITHHELD = frozenset({"logprobs", "top_logprobs", "prompt_logprobs", "n"})
GATEWAYS = {
    "chat only": lambda: Gateway(paths=("/v1/chat/completions", "/v1/models")),
    "chat only, anonymous": lambda: Gateway(paths=("/v1/chat/completions", "/v1/models"), anonymous=True),
    "completions only": lambda: Gateway(paths=("/v1/completions", "/v1/models"), anonymous=True),
    "standard fields only": lambda: Gateway(paths=("/v1/",), anonymous=True, standard_fields=True),
    "no log-probabilities, no n": lambda: Gateway(paths=("/v1/",), anonymous=True, without=WITHHELD),
    "three calls at once": lambda: Gateway(at_once=3),
    "dressed": lambda: Gateway(dressed=True, slice_bytes=7),
}


async def findings(
    logs: Path, gateway: Gateway, options: Options, cases: list[str] | None = None, **settings: str
) -> tuple[SuiteResult, list[str]]:
    async with (
        launched(find("reference"), {**SETTINGS, **settings}, logs) as engine,
        before(engine.url, gateway) as url,
    ):
        result = await run_suite(url, cases, options)
    wrong = [f"{one.id} {one.verdict}: {one.reason}" for one in result.results if one.verdict in ("FAIL", "ERROR")]
    return result, wrong


QUICK = ("chat only", "no log-probabilities, no n", "dressed")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in GATEWAYS]
)
async def test_no_structural_case_fails(tmp_path: Path, name: str) -> None:
    gateway = GATEWAYS[name]()
    result, wrong = await findings(tmp_path, gateway, Options(structural_only=True, effort=0.2))
    assert not wrong
    assert sum(one.verdict == "PASS" for one in result.results) >= 12
    assert (gateway.refused > 0) == (gateway.at_once < 10)


async def test_a_limit_of_choices_that_nobody_told_is_kept(tmp_path: Path) -> None:
    gateway = Gateway(paths=("/v1/",), anonymous=True)  # the engine behind it refuses n above 16
    result, wrong = await findings(tmp_path, gateway, Options(effort=0.1), ["SMP-02"])
    assert not wrong
    assert result.features["max_num_seqs"] is None
    assert result.features["most_choices"] == 16


async def test_an_endpoint_that_always_fails_is_broken_and_not_absent(tmp_path: Path) -> None:
    broken = Gateway(breaks=True)
    result, wrong = await findings(tmp_path, broken, Options(), ["API-01", "API-02", "API-08", "NUM-02"])
    assert len(wrong) == 4
    assert all("HTTP 500" in line for line in wrong)
    assert result.exit_code == 1


async def test_no_order_is_judged_where_calls_were_sent_away(tmp_path: Path) -> None:
    gateway = Gateway(at_once=3)
    result, _ = await findings(tmp_path, gateway, Options(), ["PRE-08"])
    assert result.results[0].verdict == "INCONCLUSIVE"
    assert f"{gateway.refused} times" in result.results[0].reason


@pytest.mark.parametrize(
    ("temperatures", "verdict"),
    [
        ((), "PASS"),
        ((0.0,), "FAIL"),
        # The noise of batches: now and then an answer differs that should be greedy.
        ((0.0, 0.0, 1.5), "FAIL"),
        ((1.5,) * 11 + (0.0,), "FAIL"),
    ],
    ids=["kept", "ignored", "ignored, with noise", "always high"],
)
async def test_an_ignored_temperature_is_seen_without_logprobs(
    tmp_path: Path, temperatures: tuple[float, ...], verdict: str
) -> None:
    gateway = Gateway(paths=("/v1/",), anonymous=True, without=WITHHELD, temperatures=temperatures)
    result, _ = await findings(tmp_path, gateway, Options(effort=0.5), ["SMP-08"])
    assert result.results[0].verdict == verdict, result.results[0].reason


async def test_one_seed_for_all_is_seen_without_logprobs(tmp_path: Path) -> None:
    gateway = Gateway(paths=("/v1/",), anonymous=True, without=WITHHELD)
    result, wrong = await findings(tmp_path, gateway, Options(effort=0.5), ["SMP-08"], inject_fault="F30:how=shared")
    assert len(wrong) == 1
    assert result.results[0].reason.startswith("temperature 1.5 does not make")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", GATEWAYS)
async def test_no_case_fails(tmp_path: Path, name: str) -> None:
    _, wrong = await findings(tmp_path, GATEWAYS[name](), Options(effort=0.5))
    assert not wrong
