"""From options to an engine: device, types, the size of the KV pool, the context length."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

from reference_engine.attention import make_backend
from reference_engine.attention.base import AttentionBackend
from reference_engine.attention.kv_format import FORMATS, KVFormat, plain_format
from reference_engine.config import CacheConfig, ConfigError, ModelConfig, SchedulerConfig
from reference_engine.detokenizer import TokenTable
from reference_engine.engine import Engine, EngineLimits
from reference_engine.kv_calibration import TEXT as CALIBRATION_TEXT
from reference_engine.kv_calibration import measure_scales
from reference_engine.models.loader import LoadedModel, load_model
from reference_engine.models.ops import make_ops
from reference_engine.plan_log import PlanLog
from reference_engine.preemption_cost import measure_preemption_cost
from reference_engine.runner import ModelRunner, block_bytes, num_blocks_for
from reference_engine.server.api import ServedModel
from reference_engine.server.options import ServerOptions, parse_size

DEFAULT_CPU_KV_BYTES = 1 << 30
MOST_DEFAULT_SWAP_BYTES = 4 << 30
DEFAULT_CUDA_KV_SHARE = 0.8  # of the memory that is free once the weights are loaded
# Tokens a step.  A CPU gains nothing from more than 256 rows at once, and every running request, every abort and every
# new arrival waits for the step in flight.
DEFAULT_CPU_BUDGET = 256
DEFAULT_CUDA_BUDGET = 2048
DEFAULT_NUM_SEQS = 64


@dataclass(frozen=True, slots=True)
class Serving:
    """An engine ready to run and what the server tells about it."""

    engine: Engine
    model: ServedModel
    tokens: TokenTable


def build(options: ServerOptions) -> Serving:
    """Load the model and allocate the pool.  Raises ConfigError or ModelLoadError with a sentence for the user."""
    if options.simulate is not None:
        from reference_engine.simulate.serving import build_simulated

        return Serving(*build_simulated(options, _open_log(options.log_plans), _version()))
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = _device(options.device)
    dtype = _dtype(options.dtype, device)
    attention = _attention(options, device)
    if attention == "triton" and options.kv_dtype not in ("auto", "fp8_e4m3", str(dtype).removeprefix("torch.")):
        raise ConfigError(
            f"--kv-dtype {options.kv_dtype} does not go with --attention triton and --dtype "
            f"{str(dtype).removeprefix('torch.')}; choose auto or fp8_e4m3, or --attention gather"
        )
    plan_log = _open_log(options.log_plans)
    ops = make_ops(device, dtype, deterministic=options.deterministic)
    loaded = load_model(options.model, dtype=dtype, device=device, max_model_len=options.max_model_len, ops=ops)
    kv_format = plain_format(dtype) if options.kv_dtype == "auto" else FORMATS[options.kv_dtype]
    cache = _cache_config(options, loaded.config, device, kv_format)
    scheduler = _scheduler_config(options, loaded.config, cache, device)
    backend = make_backend(attention, device, deterministic=options.deterministic)
    runner = _runner(options, loaded, cache, scheduler, backend, device, dtype, kv_format)
    if options.preemption == "auto" and runner.host is not None:
        cost = measure_preemption_cost(runner, scheduler.max_num_batched_tokens, scheduler.max_model_len)
        scheduler = replace(scheduler, preemption_cost=cost)
    tokens = TokenTable(loaded.tokenizer)
    limits = EngineLimits(
        vocab_size=loaded.config.vocab_size,
        eos_token_ids=_eos_token_ids(loaded),
        kv_bytes_per_token=kv_format.bytes_per_token(loaded.config),
    )
    engine = Engine(
        runner,
        limits,
        scheduler,
        cache,
        tokens,
        plan_log=plan_log,
        audit_every=options.audit_every,
        overlap=options.overlap and device.type == "cuda",
    )
    return Serving(engine, _describe(options, loaded, scheduler, cache, device, dtype, attention, kv_format), tokens)


def _attention(options: ServerOptions, device: torch.device) -> str:
    """The attention backend's name; refuses what it cannot do before the model is loaded."""
    name = options.attention
    if name == "auto":
        name = "triton" if device.type == "cuda" and find_spec("triton") is not None else "gather"
    if options.deterministic and (name != "triton" or device.type != "cuda"):
        raise ConfigError("--deterministic works with --attention triton on a CUDA device only; leave it out here")
    return name


def _runner(
    options: ServerOptions,
    loaded: LoadedModel,
    cache: CacheConfig,
    scheduler: SchedulerConfig,
    backend: AttentionBackend,
    device: torch.device,
    dtype: torch.dtype,
    kv_format: KVFormat,
) -> ModelRunner:
    """With CUDA graphs where they can run: captured here, so that no request waits for it."""
    scales = None
    if kv_format.scales == "head":
        tokens = loaded.tokenizer.encode(CALIBRATION_TEXT)
        scales = measure_scales(loaded.model, tokens[: scheduler.max_model_len])
    if backend.name != "triton" or device.type != "cuda" or not options.cuda_graphs:
        return ModelRunner(
            loaded.model, loaded.config, cache, backend, device, dtype, kv_format=kv_format, kv_scales=scales
        )
    from reference_engine.attention.triton_paged import TritonPagedAttention
    from reference_engine.graphs import GraphRunner

    assert isinstance(backend, TritonPagedAttention)
    runner = GraphRunner(
        loaded.model,
        loaded.config,
        cache,
        backend,
        device,
        dtype,
        max_num_seqs=scheduler.max_num_seqs,
        max_model_len=scheduler.max_model_len,
        kv_format=kv_format,
        kv_scales=scales,
    )
    runner.capture()
    return runner


def _device(name: str) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise ConfigError(
            "--device cuda: torch finds no CUDA device here; use --device cpu or install a CUDA build of torch"
        )
    return torch.device("cuda" if name == "cuda" or (name == "auto" and has_cuda) else "cpu")


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def _open_log(path: str | None) -> PlanLog | None:
    if path is None:
        return None
    try:
        return PlanLog(Path(path))
    except OSError as error:
        raise ConfigError(f"--log-plans {path}: cannot write there ({error.strerror}); choose another file") from None


def _cache_config(options: ServerOptions, model: ModelConfig, device: torch.device, kv_format: KVFormat) -> CacheConfig:
    num_blocks = options.num_blocks
    if num_blocks is None:
        if options.kv_memory is not None:
            memory = parse_size(options.kv_memory, "kv_memory")
        elif device.type == "cuda":
            memory = int(torch.cuda.mem_get_info(device)[0] * DEFAULT_CUDA_KV_SHARE)
        else:
            memory = DEFAULT_CPU_KV_BYTES
        num_blocks = num_blocks_for(memory, model, options.block_size, kv_format)
    return CacheConfig(
        num_blocks=num_blocks,
        block_size=options.block_size,
        prefix_caching=options.prefix_cache,
        num_host_blocks=_num_host_blocks(options, num_blocks, block_bytes(model, options.block_size, kv_format)),
        prefix_index=options.prefix_index,
        window=model.kv_window if options.policy == "paged" else None,
    )


def _num_host_blocks(options: ServerOptions, num_blocks: int, bytes_of_one: int) -> int:
    if options.preemption == "recompute" or options.policy != "paged":
        return 0
    if options.swap_space is None:
        return min(num_blocks, MOST_DEFAULT_SWAP_BYTES // bytes_of_one)
    count = parse_size(options.swap_space, "swap_space") // bytes_of_one
    if not count:
        raise ConfigError(f"--swap-space {options.swap_space} holds no block ({bytes_of_one} bytes); raise it")
    return count


def _scheduler_config(
    options: ServerOptions, model: ModelConfig, cache: CacheConfig, device: torch.device
) -> SchedulerConfig:
    longest = options.max_model_len
    if longest is not None and longest > model.max_position_embeddings:
        raise ConfigError(
            f"--max-model-len {longest} exceeds the {model.max_position_embeddings} positions the model knows; lower it"
        )
    if longest is None:
        longest = min(model.max_position_embeddings, cache.num_slots)
    elif longest > cache.num_slots:
        raise ConfigError(
            f"--max-model-len {longest} exceeds the KV pool of {cache.num_slots} tokens; lower it or raise --kv-memory"
        )
    budget = options.max_num_batched_tokens
    if budget is None:
        budget = DEFAULT_CUDA_BUDGET if device.type == "cuda" else DEFAULT_CPU_BUDGET
    return SchedulerConfig(
        max_model_len=longest,
        max_num_seqs=DEFAULT_NUM_SEQS if options.max_num_seqs is None else options.max_num_seqs,
        max_num_batched_tokens=budget,
        policy=options.policy,
        order=options.order,
        max_waiting=options.max_waiting,
        watermark=options.watermark,
        preemption=options.preemption,
    )


def _eos_token_ids(loaded: LoadedModel) -> tuple[int, ...]:
    """The model's own, or else the tokenizer's."""
    if loaded.config.eos_token_ids:
        return loaded.config.eos_token_ids
    return () if loaded.tokenizer.eos_id is None else (loaded.tokenizer.eos_id,)


def _version() -> str:
    try:
        return version("pagedbench")
    except PackageNotFoundError:
        return "source"


def _describe(
    options: ServerOptions,
    loaded: LoadedModel,
    scheduler: SchedulerConfig,
    cache: CacheConfig,
    device: torch.device,
    dtype: torch.dtype,
    attention: str,
    kv_format: KVFormat,
) -> ServedModel:
    name = options.served_model_name or options.model.rstrip("/")
    per_token = kv_format.bytes_per_token(loaded.config)
    settings: dict[str, object] = {
        "engine": "pagedbench",
        "version": _version(),
        "torch": torch.__version__,
        "family": loaded.config.family,
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": str(dtype).removeprefix("torch."),
        "kv_dtype": kv_format.name,
        "threads": torch.get_num_threads(),
        "attention": attention,
        "cuda_graphs": options.cuda_graphs and attention == "triton" and device.type == "cuda",
        "overlap": options.overlap and device.type == "cuda",
        "deterministic": options.deterministic,
        "policy": scheduler.policy,
        "order": scheduler.order,
        "block_size": cache.block_size,
        "num_blocks": cache.num_blocks,
        "kv_pool_bytes": cache.num_slots * per_token,
        "kv_bytes_per_token": per_token,
        "prefix_caching": cache.prefix_caching and scheduler.policy == "paged",
        "prefix_index": cache.prefix_index,
        "preemption": scheduler.preemption,
        "num_host_blocks": cache.num_host_blocks,
        "watermark": scheduler.watermark,
        "kv_window": cache.window,
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "vocab_size": loaded.config.vocab_size,
    }
    cache_config = {
        "block_size": cache.block_size,
        "num_gpu_blocks": cache.num_blocks,
        "kv_cache_size_tokens": cache.num_slots,
        "kv_cache_memory_bytes": cache.num_slots * per_token,
        "cache_dtype": settings["kv_dtype"],
        "enable_prefix_caching": settings["prefix_caching"],
        "policy": scheduler.policy,
    }
    digest = hashlib.sha256(repr((name, sorted(settings.items()))).encode()).hexdigest()
    return ServedModel(
        name=name,
        tokenizer=loaded.tokenizer,
        max_model_len=scheduler.max_model_len,
        fingerprint=f"fp_{digest[:12]}",
        cache_config=cache_config,
        settings=settings,
    )
