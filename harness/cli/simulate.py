"""``pagedbench simulate``: the engine's scheduler and memory policies in virtual time, and profiles from measured runs."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli.errors import CliError
from reference_engine.config import ConfigError, KVPolicy

SCHEMA = "pagedbench-simulate/1"


def simulate(
    profile: Annotated[
        str, typer.Option(metavar="NAME", help="Machine and model: a100-opt-13b, h100-llama-3.1-8b, or a .json file.")
    ] = "h100-llama-3.1-8b",
    policy: Annotated[KVPolicy, typer.Option(help="Memory policy.")] = "paged",
    lengths: Annotated[str, typer.Option(metavar="NAME", help="Token lengths: sharegpt or alpaca.")] = "sharegpt",
    rate: Annotated[
        float, typer.Option(metavar="X", min=0, help="Poisson arrivals [requests/s]; 0: all wait from the start.")
    ] = 0,
    num_requests: Annotated[int, typer.Option(metavar="N", min=1, help="Requests [count].")] = 1000,
    n: Annotated[int, typer.Option(metavar="N", min=1, help="Samples of each prompt [count].")] = 1,
    block_size: Annotated[int, typer.Option(metavar="N", min=1, max=256, help="Slots in a KV block [tokens].")] = 16,
    kv_slots: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="KV pool [token slots]. Default: the profile's.")
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Sequences at once [count]. Default: the profile's.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of lengths and arrivals.")] = 0,
    calibrate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Fit a profile to this plan log (serve --log-plans) instead of simulating."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for simulate.json, or for profile.json with --calibrate.")
    ] = None,
) -> None:
    """Simulate a trace in virtual time: what would this policy hold, and how long would requests take?

    With --calibrate: fit the times of --profile to a measured run, and write the profile.  Exit codes: 0 done, 2 usage.
    """
    try:
        if calibrate is not None:
            document, name = fit(calibrate, profile), "profile.json"
        else:
            document = run(profile, policy, lengths, rate, num_requests, n, block_size, kv_slots, max_num_seqs, seed)
            name = "simulate.json"
    except ConfigError as error:
        raise CliError(str(error)) from None
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            written = document["profile"] if calibrate is not None else document
            (out / name).write_text(json.dumps(written, indent=1), encoding="utf-8")
        except OSError as error:
            raise CliError(f"--out {out}: cannot write there ({error.strerror}); choose another folder") from None
    if as_json:
        typer.echo(json.dumps(document, indent=1))
    else:
        for line in fitted_lines(document) if calibrate is not None else lines(document):
            typer.echo(line)
        if out is not None:
            typer.echo(str(out / name))


def run(
    profile: str,
    policy: KVPolicy,
    lengths: str,
    rate: float,
    num_requests: int,
    n: int,
    block_size: int,
    kv_slots: int | None,
    max_num_seqs: int | None,
    seed: int,
) -> dict[str, Any]:
    """One simulation.  Raises ConfigError."""
    from reference_engine.simulate import trace
    from reference_engine.simulate.offline import simulate as run_trace
    from reference_engine.simulate.profile import load_profile

    datasets = {"sharegpt": trace.SHAREGPT, "alpaca": trace.ALPACA}
    if lengths not in datasets:
        raise CliError(f"--lengths {lengths!r} is not known; choose one of {', '.join(datasets)}")
    machine = load_profile(profile)
    requests = datasets[lengths].trace(rate=rate, count=num_requests, seed=seed, max_model_len=machine.max_model_len)
    began = time.process_time()
    outcome = run_trace(
        requests, machine, policy=policy, n=n, block_size=block_size, kv_slots=kv_slots, max_num_seqs=max_num_seqs
    )
    return {
        "schema": SCHEMA,
        "profile": machine.name,
        "policy": policy,
        "lengths": lengths,
        "rate": rate,
        "num_requests": num_requests,
        "n": n,
        "block_size": block_size,
        "seed": seed,
        "cpu_seconds": round(time.process_time() - began, 2),
        "virtual_seconds": outcome.seconds,
        "steps": outcome.steps,
        "output_tokens": outcome.output_tokens,
        "output_tokens_per_s": outcome.output_tokens / outcome.seconds if outcome.seconds else None,
        "requests_at_once": outcome.running,
        "ledger": outcome.ledger,
        "waste": outcome.waste,
        "sharing_saved": outcome.sharing_saved,
        "preemptions": outcome.preemptions,
        "recomputed_tokens": outcome.recomputed_tokens,
        "refused": outcome.refused,
        "ttft_s": percentiles(outcome.ttft),
        "e2e_s": percentiles(outcome.e2e),
        "normalised_s_per_token": outcome.normalised_latency if outcome.normalised else None,
    }


def fit(log: Path, base: str) -> dict[str, Any]:
    """A profile fitted to a plan log.  Raises ConfigError."""
    from reference_engine.simulate.calibrate import calibrate
    from reference_engine.simulate.profile import load_profile

    try:
        with log.open(encoding="utf-8") as file:
            found = calibrate(file, load_profile(base), log.stem)
    except OSError as error:
        raise CliError(f"--calibrate {log}: cannot read it ({error.strerror})") from None
    return {
        "schema": SCHEMA,
        "profile": asdict(found.profile),
        "steps": found.steps,
        "r_squared": found.r_squared,
        "mean_error": found.mean_error,
    }


def percentiles(values: list[float]) -> dict[str, float | None]:
    """p50, p90 and p99; null where the sample cannot support it."""
    ordered = sorted(values)
    return {
        f"p{p}": ordered[int(len(ordered) * p / 100)] if len(ordered) * (100 - p) / 100 >= 1 else None
        for p in (50, 90, 99)
    }


def lines(document: dict[str, Any]) -> list[str]:
    shares = ", ".join(f"{word.replace('_', ' ')} {share:.1%}" for word, share in document["ledger"].items())
    return [
        f"{document['profile']}, {document['policy']}, {document['num_requests']} requests, {document['lengths']} lengths",
        f"{document['virtual_seconds']:.1f} s of virtual time in {document['cpu_seconds']} s of CPU, "
        f"{document['steps']} steps",
        f"{document['requests_at_once']:.1f} requests at once, {document['output_tokens_per_s'] or 0:.0f} output tokens/s, "
        f"{document['preemptions']} preemptions",
        f"KV memory: {shares}; waste {document['waste']:.1%}",
        f"TTFT {_told(document['ttft_s'])} s; E2E {_told(document['e2e_s'])} s",
    ]


def _told(found: dict[str, float | None]) -> str:
    return ", ".join(f"{name} {'-' if value is None else f'{value:.3g}'}" for name, value in found.items())


def fitted_lines(document: dict[str, Any]) -> list[str]:
    profile = document["profile"]
    return [
        f"fitted to {document['steps']} steps: R2 {document['r_squared']:.3f}, mean error {document['mean_error']:.1%}",
        *(f"  {name} {profile[name]:.3g} s" for name in ("fixed", "per_sequence", "per_context_token", "per_token")),
    ]
