"""``pagedbench serve --simulate PROFILE``: the whole server, with a profile in place of the model."""

from __future__ import annotations

from dataclasses import replace

from reference_engine.config import CacheConfig, ConfigError, SchedulerConfig
from reference_engine.detokenizer import TokenTable
from reference_engine.engine import Engine, EngineLimits
from reference_engine.plan_log import PlanLog
from reference_engine.server.api import ServedModel
from reference_engine.server.options import ServerOptions, parse_size
from reference_engine.simulate.profile import Profile, load_profile
from reference_engine.simulate.runner import SimulatedRunner
from reference_engine.simulate.tokenizer import EOS, VOCAB, ByteTokenizer


def build_simulated(
    options: ServerOptions, plan_log: PlanLog | None, version: str
) -> tuple[Engine, ServedModel, TokenTable]:
    """The engine and what the server tells about it.  Options that size the pool or the steps override the profile's.

    Raises ConfigError.
    """
    assert options.simulate is not None
    profile = load_profile(options.simulate)
    cache = _cache_config(options, profile)
    scheduler = _scheduler_config(options, profile, cache)
    tokens = TokenTable(ByteTokenizer())
    limits = EngineLimits(VOCAB, (EOS,), profile.kv_bytes_per_token)
    runner = SimulatedRunner(profile, cache)
    engine = Engine(runner, limits, scheduler, cache, tokens, plan_log=plan_log, audit_every=options.audit_every)
    return engine, describe(options.served_model_name or profile.name, profile, scheduler, cache, version), tokens


def describe(name: str, profile: Profile, scheduler: SchedulerConfig, cache: CacheConfig, version: str) -> ServedModel:
    """What clients are told; ``simulated`` in the settings says that no model computes."""
    settings: dict[str, object] = {
        "engine": "pagedbench",
        "version": version,
        "simulated": profile.name,
        "about": profile.about,
        "policy": scheduler.policy,
        "order": scheduler.order,
        "block_size": cache.block_size,
        "num_blocks": cache.num_blocks,
        "kv_pool_bytes": cache.num_slots * profile.kv_bytes_per_token,
        "kv_bytes_per_token": profile.kv_bytes_per_token,
        "prefix_caching": cache.prefix_caching and scheduler.policy == "paged",
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "vocab_size": VOCAB,
    }
    cache_config: dict[str, object] = {
        "block_size": cache.block_size,
        "num_gpu_blocks": cache.num_blocks,
        "kv_cache_size_tokens": cache.num_slots,
        "kv_cache_memory_bytes": settings["kv_pool_bytes"],
        "enable_prefix_caching": settings["prefix_caching"],
        "policy": scheduler.policy,
    }
    return ServedModel(
        name=name,
        tokenizer=ByteTokenizer(),
        max_model_len=scheduler.max_model_len,
        fingerprint=f"fp_simulated_{profile.name}",
        cache_config=cache_config,
        settings=settings,
    )


def _cache_config(options: ServerOptions, profile: Profile) -> CacheConfig:
    size = options.block_size
    if options.num_blocks is not None:
        num_blocks = options.num_blocks
    elif options.kv_memory is not None:
        num_blocks = parse_size(options.kv_memory, "kv_memory") // (size * profile.kv_bytes_per_token)
    else:
        num_blocks = profile.kv_slots // size
    return CacheConfig(num_blocks=num_blocks, block_size=size, prefix_caching=options.prefix_cache)


def _scheduler_config(options: ServerOptions, profile: Profile, cache: CacheConfig) -> SchedulerConfig:
    longest = options.max_model_len or min(profile.max_model_len, cache.num_slots)
    if longest > cache.num_slots:
        raise ConfigError(
            f"--max-model-len {longest} exceeds the KV pool of {cache.num_slots} tokens; lower it or raise --kv-memory"
        )
    config = SchedulerConfig(
        max_model_len=longest,
        max_num_seqs=profile.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens or profile.max_num_batched_tokens,
        policy=options.policy,
        order=options.order,
        max_waiting=options.max_waiting,
    )
    return config if options.max_num_seqs is None else replace(config, max_num_seqs=options.max_num_seqs)
