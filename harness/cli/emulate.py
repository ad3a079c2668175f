"""``pagedbench emulate``: an engine with exact, scripted times as a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from harness.cli.errors import CliError
from harness.emulator.options import FAULTS, EmulatorError, EmulatorOptions, load_script, make_options, parse_faults

DEFAULT = EmulatorOptions()


def emulate(
    ttft_ms: Annotated[float, typer.Option(metavar="MS", help="Request to first chunk.")] = DEFAULT.ttft_ms,
    itl_ms: Annotated[float, typer.Option(metavar="MS", help="Chunk to chunk.")] = DEFAULT.itl_ms,
    tokens: Annotated[int, typer.Option(metavar="N", help="Tokens of an answer, unless asked.")] = DEFAULT.tokens,
    tokens_per_chunk: Annotated[int, typer.Option(metavar="N", help="Tokens in a chunk.")] = DEFAULT.tokens_per_chunk,
    slowdown: Annotated[float, typer.Option(metavar="FACTOR", help="Multiplies every time.")] = DEFAULT.slowdown,
    noise: Annotated[
        float, typer.Option(metavar="CV", help="Log-normal factor on all times of an answer, this CV.")
    ] = DEFAULT.noise,
    jitter: Annotated[float, typer.Option(metavar="CV", help="The same, drawn for each chunk.")] = DEFAULT.jitter,
    prefill_tokens_per_s: Annotated[
        float | None, typer.Option(metavar="N", help="Adds prompt tokens / N seconds to the first chunk.")
    ] = None,
    pacing: Annotated[
        Literal["streams", "steps"], typer.Option(help="Each answer by its own clock, or all in common steps.")
    ] = DEFAULT.pacing,
    itl_per_seq_ms: Annotated[
        float, typer.Option(metavar="MS", help="With steps: what each running sequence adds.")
    ] = DEFAULT.itl_per_seq_ms,
    kv_tokens: Annotated[
        int | None, typer.Option(metavar="TOKENS", help="KV pool; fuller means preemption.  [default: no limit]")
    ] = None,
    block_size: Annotated[int, typer.Option(metavar="TOKENS", help="Slots in a block.")] = DEFAULT.block_size,
    kv_bytes_per_token: Annotated[
        int, typer.Option(metavar="BYTES", help="For the pool's size in /metrics.")
    ] = DEFAULT.kv_bytes_per_token,
    max_num_seqs: Annotated[
        int, typer.Option(metavar="N", help="Sequences that run at once; the others wait.")
    ] = DEFAULT.max_num_seqs,
    max_waiting: Annotated[
        int, typer.Option(metavar="N", help="Requests that may wait; more get 429.")
    ] = DEFAULT.max_waiting,
    max_model_len: Annotated[
        int, typer.Option(metavar="TOKENS", help="Prompt and answer of one request.")
    ] = DEFAULT.max_model_len,
    fault: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND=SHARE", help=f"Share of requests that fail; repeatable: {', '.join(FAULTS)}."),
    ] = None,
    script: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON Lines, one answer a line: see docs/emulator.md.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of noise, jitter and faults.")] = DEFAULT.seed,
    model: Annotated[str, typer.Option(metavar="ID", help="Model id that the API shows.")] = DEFAULT.model,
    api_key: Annotated[str | None, typer.Option(metavar="KEY", help="Ask for this bearer key.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = DEFAULT.host,
    port: Annotated[int, typer.Option(help="0: any free one.")] = DEFAULT.port,
) -> None:
    """Serve an engine that computes nothing and keeps scripted times, for calibrating and for tests.

    Prints "listening on http://HOST:PORT" when it is ready; ends on Ctrl-C or SIGTERM.  GET /truth tells its own times.
    """
    try:
        options = make_options(
            host=host,
            port=port,
            model=model,
            ttft_ms=ttft_ms,
            itl_ms=itl_ms,
            tokens=tokens,
            tokens_per_chunk=tokens_per_chunk,
            slowdown=slowdown,
            noise=noise,
            jitter=jitter,
            prefill_tokens_per_s=prefill_tokens_per_s,
            pacing=pacing,
            itl_per_seq_ms=itl_per_seq_ms,
            kv_tokens=kv_tokens,
            block_size=block_size,
            kv_bytes_per_token=kv_bytes_per_token,
            max_num_seqs=max_num_seqs,
            max_waiting=max_waiting,
            max_model_len=max_model_len,
            faults=parse_faults(fault or []),
            script=() if script is None else load_script(script),
            seed=seed,
            api_key=api_key,
        )
        from harness.emulator.process import run_emulator

        run_emulator(options)
    except EmulatorError as error:
        raise CliError(str(error)) from error
