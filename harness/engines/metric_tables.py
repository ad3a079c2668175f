"""Alias tables: for each kind of engine, which families carry a name of our vocabulary, the best source first.

The first source whose families are all present gives the value; a name without a source is absent.  Checked against the
texts under ``tests/harness/engines/fixtures``: recorded ones for the engines that were run, and for the others texts
written from the names in their sources and documents (each says which).
"""

from __future__ import annotations

from harness.engines.metric_sources import Formula, Gauge, Join, Table, counter, product

VLLM_INFO = "vllm:cache_config_info"


def vllm_allocated(usage: float, blocks: float, blocks_each: float, block_size: float) -> float:
    """Slots that requests hold.  Each engine's share leaves out its null block (seen live: 16 / 181 of 182 blocks)."""
    engines = blocks / blocks_each
    return round(usage * (blocks - engines)) * block_size


VLLM_ALLOCATED = Formula(
    (
        Gauge("vllm:kv_cache_usage_perc", "mean"),
        Gauge(VLLM_INFO, "sum", label="num_gpu_blocks"),
        Gauge(VLLM_INFO, "mean", label="num_gpu_blocks"),
        Gauge(VLLM_INFO, "max", label="block_size"),
    ),
    vllm_allocated,
)

VLLM: Table = {
    "requests_running": (Gauge("vllm:num_requests_running"),),
    "requests_waiting": (Gauge("vllm:num_requests_waiting"),),
    "preemptions_total": counter("vllm:num_preemptions"),
    "kv_usage": (Gauge("vllm:kv_cache_usage_perc", "mean"), Gauge("vllm:gpu_cache_usage_perc", "mean")),
    "kv_slots_reserved": (
        Gauge(VLLM_INFO, label="kv_cache_size_tokens"),
        Formula((Gauge(VLLM_INFO, label="num_gpu_blocks"), Gauge(VLLM_INFO, "max", label="block_size")), product),
    ),
    "kv_slots_allocated": (VLLM_ALLOCATED,),
    "kv_block_size": (Gauge(VLLM_INFO, "max", label="block_size"),),
    "kv_pool_bytes": (Gauge(VLLM_INFO, label="kv_cache_memory_bytes"),),
    "prompt_tokens_total": counter("vllm:prompt_tokens"),
    "generation_tokens_total": counter("vllm:generation_tokens"),
    "prefix_cache_queries_total": (*counter("vllm:prefix_cache_queries"), *counter("vllm:gpu_prefix_cache_queries")),
    "prefix_cache_hits_total": (*counter("vllm:prefix_cache_hits"), *counter("vllm:gpu_prefix_cache_hits")),
}

SGLANG: Table = {
    "requests_running": (Gauge("sglang:num_running_reqs"),),
    "requests_waiting": (Gauge("sglang:num_queue_reqs"),),
    # Not sglang:num_retracted_reqs, which is the latest batch's number and no counter.
    "preemptions_total": (Gauge("sglang:num_retracted_requests_total"),),
    "recomputed_tokens_total": (
        Formula(
            (
                Gauge("sglang:num_retracted_input_tokens_total"),
                Gauge("sglang:num_retracted_output_tokens_total"),
            ),
            lambda prompt, generated: prompt + generated,
        ),
    ),
    "kv_usage": (Gauge("sglang:full_token_usage", "mean"), Gauge("sglang:token_usage", "mean")),
    "kv_slots_reserved": (Gauge("sglang:max_total_num_tokens"),),
    "kv_slots_allocated": (Gauge("sglang:kv_used_tokens"), Gauge("sglang:num_used_tokens")),
    "kv_slots_evictable": (Gauge("sglang:kv_evictable_tokens"),),
    "kv_block_size": (Gauge("sglang:page_size", "max"), Gauge("sglang:cache_config_info", "max", label="page_size")),
    "prompt_tokens_total": counter("sglang:prompt_tokens"),
    "generation_tokens_total": counter("sglang:generation_tokens"),
    "prefix_cache_queries_total": counter("sglang:prompt_tokens"),
    "prefix_cache_hits_total": counter("sglang:cached_tokens"),
}

TGI: Table = {
    "requests_running": (Gauge("tgi_batch_current_size"),),
    "requests_waiting": (Gauge("tgi_queue_size"),),
    "prompt_tokens_total": (Gauge("tgi_request_input_length_sum"),),
    "generation_tokens_total": (Gauge("tgi_request_generated_tokens_sum"),),
    "kv_slots_reserved": (Gauge("tgi_batch_max_total_tokens", "max"),),
    "kv_slots_allocated": (Gauge("tgi_batch_current_max_tokens"),),
}

# Its prompt_tokens_total leaves out what was found in the cache.
LLAMA_CPP_PROMPT_TOKENS = Formula(
    (Gauge("llamacpp:prompt_tokens_total"), Gauge("llamacpp:prompt_tokens_cached_total")),
    lambda computed, cached: computed + cached,
)

LLAMA_CPP: Table = {
    "requests_running": (Gauge("llamacpp:requests_processing"),),
    "requests_waiting": (Gauge("llamacpp:requests_deferred"),),
    # Releases before the removal of these two (PR 13660).
    "kv_usage": (Gauge("llamacpp:kv_cache_usage_ratio"),),
    "kv_slots_live": (Gauge("llamacpp:kv_cache_tokens"),),
    "prompt_tokens_total": (LLAMA_CPP_PROMPT_TOKENS,),
    "generation_tokens_total": (Gauge("llamacpp:tokens_predicted_total"),),
    "prefix_cache_queries_total": (LLAMA_CPP_PROMPT_TOKENS,),
    "prefix_cache_hits_total": (Gauge("llamacpp:prompt_tokens_cached_total"),),
}

TENSORRT_LLM: Table = {
    "requests_running": (Gauge("trtllm_num_requests_running"),),
    "requests_waiting": (Gauge("trtllm_num_requests_waiting"),),
    "kv_usage": (Gauge("trtllm_kv_cache_utilization", "mean"),),
    "kv_slots_reserved": (
        Formula((Gauge("trtllm_kv_cache_max_blocks"), Gauge("trtllm_kv_cache_tokens_per_block", "max")), product),
    ),
    "kv_slots_allocated": (
        Formula((Gauge("trtllm_kv_cache_used_blocks"), Gauge("trtllm_kv_cache_tokens_per_block", "max")), product),
    ),
    "kv_block_size": (Gauge("trtllm_kv_cache_tokens_per_block", "max"),),
    "prompt_tokens_total": (Gauge("trtllm_prompt_tokens_total"),),
    "generation_tokens_total": (Gauge("trtllm_generation_tokens_total"),),
    "prefix_cache_hits_total": (Gauge("trtllm_prompt_cached_tokens_total"),),
}

TRITON_BLOCKS = "nv_trt_llm_kv_cache_block_metrics"
TRITON_REQUESTS = "nv_trt_llm_request_metrics"


def triton_blocks(kind: str, join: Join = "sum") -> Gauge:
    return Gauge(TRITON_BLOCKS, join, where=("kv_cache_block_type", kind))


TRITON: Table = {
    "requests_running": (Gauge(TRITON_REQUESTS, where=("request_type", "scheduled")),),
    "requests_waiting": (Gauge(TRITON_REQUESTS, where=("request_type", "waiting")),),
    "kv_usage": (
        triton_blocks("fraction", "mean"),
        Formula((triton_blocks("used"), triton_blocks("max")), lambda used, blocks: used / blocks if blocks else 0.0),
    ),
    "kv_slots_reserved": (Formula((triton_blocks("max"), triton_blocks("tokens_per", "max")), product),),
    "kv_slots_allocated": (Formula((triton_blocks("used"), triton_blocks("tokens_per", "max")), product),),
    "kv_block_size": (triton_blocks("tokens_per", "max"),),
}

LMDEPLOY: Table = {
    "requests_running": (Gauge("lmdeploy:num_requests_running"),),
    "requests_waiting": (Gauge("lmdeploy:num_requests_waiting"),),
    "kv_usage": (Gauge("lmdeploy:gpu_cache_usage_perc", "mean"),),
    "prompt_tokens_total": counter("lmdeploy:prompt_tokens"),
    "generation_tokens_total": counter("lmdeploy:generation_tokens"),
    "prefix_cache_hits_total": (Gauge("lmdeploy:cached_tokens_total"),),
}

# Kind of engine -> prefix of its families and its table.  Ours is PREFIX + name of the vocabulary.
OUR_PREFIX = "pagedbench:"
TABLES: dict[str, tuple[str, Table]] = {
    "vllm": ("vllm:", VLLM),
    "sglang": ("sglang:", SGLANG),
    "tgi": ("tgi_", TGI),
    "llama.cpp": ("llamacpp:", LLAMA_CPP),
    "tensorrt-llm": ("trtllm_", TENSORRT_LLM),
    "triton": ("nv_trt_llm_", TRITON),
    "lmdeploy": ("lmdeploy:", LMDEPLOY),
}
