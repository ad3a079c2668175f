"""``pagedbench serve``: the reference engine as an OpenAI server."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.cli.errors import CliError
from reference_engine.config import ConfigError, KVPolicy, KVType, Preemption, PrefixIndex, QueueOrder
from reference_engine.server.options import HELP, Attention, Device, DType, ServerOptions

DEFAULT = ServerOptions()


def serve(
    model: Annotated[str, typer.Option(help=HELP["model"])] = DEFAULT.model,
    served_model_name: Annotated[str | None, typer.Option(help=HELP["served_model_name"])] = None,
    device: Annotated[Device, typer.Option(help=HELP["device"])] = DEFAULT.device,
    dtype: Annotated[DType, typer.Option(help=HELP["dtype"])] = DEFAULT.dtype,
    kv_dtype: Annotated[KVType, typer.Option(help=HELP["kv_dtype"])] = DEFAULT.kv_dtype,
    kv_memory: Annotated[str | None, typer.Option(help=HELP["kv_memory"], metavar="SIZE")] = None,
    num_blocks: Annotated[int | None, typer.Option(help=HELP["num_blocks"])] = None,
    block_size: Annotated[int, typer.Option(help=HELP["block_size"])] = DEFAULT.block_size,
    policy: Annotated[KVPolicy, typer.Option(help=HELP["policy"])] = DEFAULT.policy,
    attention: Annotated[Attention, typer.Option(help=HELP["attention"])] = DEFAULT.attention,
    max_model_len: Annotated[int | None, typer.Option(help=HELP["max_model_len"])] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help=HELP["max_num_seqs"])] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option(help=HELP["max_num_batched_tokens"])] = None,
    prefix_cache: Annotated[bool, typer.Option(help=HELP["prefix_cache"])] = DEFAULT.prefix_cache,
    prefix_index: Annotated[PrefixIndex, typer.Option(help=HELP["prefix_index"])] = DEFAULT.prefix_index,
    preemption: Annotated[Preemption, typer.Option(help=HELP["preemption"])] = DEFAULT.preemption,
    swap_space: Annotated[str | None, typer.Option(help=HELP["swap_space"], metavar="SIZE")] = None,
    watermark: Annotated[float, typer.Option(help=HELP["watermark"])] = DEFAULT.watermark,
    order: Annotated[QueueOrder, typer.Option(help=HELP["order"])] = DEFAULT.order,
    max_waiting: Annotated[int, typer.Option(help=HELP["max_waiting"])] = DEFAULT.max_waiting,
    max_body_bytes: Annotated[str, typer.Option(help=HELP["max_body_bytes"], metavar="SIZE")] = DEFAULT.max_body_bytes,
    host: Annotated[str, typer.Option(help=HELP["host"])] = DEFAULT.host,
    port: Annotated[int, typer.Option(help=HELP["port"])] = DEFAULT.port,
    api_key: Annotated[str | None, typer.Option(help=HELP["api_key"])] = None,
    debug_endpoints: Annotated[
        bool, typer.Option("--debug-endpoints", help=HELP["debug_endpoints"])
    ] = DEFAULT.debug_endpoints,
    log_plans: Annotated[str | None, typer.Option(help=HELP["log_plans"], metavar="FILE")] = None,
    audit_every: Annotated[int, typer.Option(help=HELP["audit_every"])] = DEFAULT.audit_every,
    cuda_graphs: Annotated[bool, typer.Option(help=HELP["cuda_graphs"])] = DEFAULT.cuda_graphs,
    overlap: Annotated[bool, typer.Option(help=HELP["overlap"])] = DEFAULT.overlap,
    deterministic: Annotated[bool, typer.Option("--deterministic", help=HELP["deterministic"])] = DEFAULT.deterministic,
    inject_fault: Annotated[list[str] | None, typer.Option(help=HELP["inject_fault"], metavar="ID[:k=v,...]")] = None,
    benign: Annotated[list[str] | None, typer.Option(help=HELP["benign"], metavar="ID[:k=v,...]")] = None,
    simulate: Annotated[str | None, typer.Option(help=HELP["simulate"], metavar="PROFILE")] = None,
    threads: Annotated[int | None, typer.Option(help=HELP["threads"])] = None,
) -> None:
    """Serve a model with the reference engine (OpenAI API).

    Prints "listening on http://HOST:PORT" when it is ready; ends on Ctrl-C or SIGTERM.  Exit status: 0 stopped, 1 the
    engine broke down, 2 usage.
    """
    try:
        options = ServerOptions(
            model=model,
            served_model_name=served_model_name,
            device=device,
            dtype=dtype,
            kv_dtype=kv_dtype,
            kv_memory=kv_memory,
            num_blocks=num_blocks,
            block_size=block_size,
            policy=policy,
            attention=attention,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            prefix_cache=prefix_cache,
            prefix_index=prefix_index,
            preemption=preemption,
            swap_space=swap_space,
            watermark=watermark,
            order=order,
            max_waiting=max_waiting,
            max_body_bytes=max_body_bytes,
            host=host,
            port=port,
            api_key=api_key,
            debug_endpoints=debug_endpoints,
            log_plans=log_plans,
            audit_every=audit_every,
            cuda_graphs=cuda_graphs,
            overlap=overlap,
            deterministic=deterministic,
            inject_fault=tuple(inject_fault or ()),
            benign=tuple(benign or ()),
            simulate=simulate,
            threads=threads,
        )
    except ConfigError as error:
        raise CliError(str(error)) from None
    try:
        from reference_engine.server.launch import run_server
    except ImportError as error:
        raise CliError(f"the reference engine needs the package {error.name!r}; install pagedbench[engine]") from None
    from reference_engine.models.errors import ModelLoadError

    try:
        status = run_server(options)
    except (ConfigError, ModelLoadError) as error:
        raise CliError(str(error)) from None
    if status:
        raise typer.Exit(status)
