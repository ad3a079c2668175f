"""Output tokens/s of the engine and of transformers' continuous batching: same GPU, same random weights, same requests."""

from __future__ import annotations

import random
import time
from typing import Any

import torch
from random_model import RandomWeights, make_engine, make_runner

from reference_engine.attention.triton_paged import TritonPagedAttention
from reference_engine.config import CacheConfig, ModelConfig
from reference_engine.models.llama import LlamaModel
from reference_engine.request import Request, SamplingParams

# A first run this long is no warm-up problem; it is not repeated.
WARM_ENOUGH_S = 40.0


def draw_requests(count: int, vocab: int, mean_in: int, mean_out: int, seed: int) -> list[tuple[list[int], int]]:
    """(prompt, output tokens) with exponential lengths around the means, clipped to 4 times them."""
    rng = random.Random(seed)

    def length(mean: int) -> int:
        return max(4, min(4 * mean, round(rng.expovariate(1 / mean))))

    return [([rng.randrange(vocab) for _ in range(length(mean_in))], length(mean_out)) for _ in range(count)]


def serve_ours(
    model: LlamaModel,
    requests: list[tuple[list[int], int]],
    *,
    max_num_seqs: int,
    blocks: int,
    deterministic: bool = False,
) -> tuple[list[dict[str, Any]], dict[str, list[int]]]:
    """Tokens/s from the first add to the last token, without and with steps launched ahead; and the tokens.

    Raises RuntimeError if the two give different tokens in deterministic mode.
    """
    device = model.device
    longest = max(len(prompt) + out for prompt, out in requests) + 1
    runner = make_runner(
        model,
        TritonPagedAttention(device, deterministic=deterministic),
        CacheConfig(num_blocks=blocks, block_size=16),
        graphs=max_num_seqs,
        max_model_len=longest,
    )
    begin = time.perf_counter()
    runner.capture()  # type: ignore[attr-defined]
    captured = time.perf_counter() - begin
    budget = 2048

    def engine_run(batch: list[tuple[list[int], int]], overlap: bool) -> tuple[float, dict[str, list[int]]]:
        engine = make_engine(
            runner,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            max_model_len=longest,
            overlap=overlap,
        )
        for i, (prompt, out) in enumerate(batch):
            engine.add(Request(str(i), tuple(prompt), SamplingParams(temperature=0.0, max_tokens=out, ignore_eos=True)))
        text: dict[str, list[int]] = {}
        start = time.perf_counter()
        while engine.has_work:
            for output in engine.step():
                if output.token is None:
                    raise RuntimeError(output.error)
                text.setdefault(output.request_id, []).append(output.token)
        return time.perf_counter() - start, text

    engine_run([(prompt, 4) for prompt, _ in requests[:16]], overlap=False)
    rows: list[dict[str, Any]] = []
    texts: list[dict[str, list[int]]] = []
    for overlap in (False, True):
        seconds, text = engine_run(requests, overlap)
        tokens = sum(len(t) for t in text.values())
        row = {"engine": "pagedbench", "tokens": tokens, "seconds": seconds, "tokens_per_s": tokens / seconds}
        rows.append({**row, "overlap": overlap, "deterministic": deterministic, "capture_s": captured})
        texts.append(text)
    if deterministic and texts[0] != texts[1]:
        raise RuntimeError("steps launched ahead gave other tokens")
    return rows, texts[1]


def serve_transformers(
    config: ModelConfig, device: torch.device, requests: list[tuple[list[int], int]], *, max_num_seqs: int, seed: int
) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """transformers' own continuous batching on the same weights; its warm-up is outside the clock."""
    import transformers
    from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM
    from transformers.generation.continuous_batching.utils import WorkloadHints

    hf_config = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        rope_theta=config.rope_theta,
        rms_norm_eps=config.rms_norm_eps,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    weights = RandomWeights(config, device, seed)
    with torch.device("meta"):
        model = LlamaForCausalLM(hf_config).to(torch.bfloat16)
    model = model.to_empty(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights.tensor(name))
    rotary = type(model.model.rotary_emb)(hf_config).to(device)
    model.model.rotary_emb = rotary
    model.set_attn_implementation("sdpa")
    model.eval()

    longest_in, longest_out = max(len(prompt) for prompt, _ in requests), max(out for _, out in requests)
    generation = GenerationConfig(max_new_tokens=longest_out, do_sample=False, eos_token_id=-1, pad_token_id=0)
    hints = WorkloadHints(longest_in, longest_out, len(requests))
    text: dict[str, list[int]] = {}
    with model.continuous_batching_context_manager(
        generation_config=generation,
        continuous_batching_config=ContinuousBatchingConfig(max_requests_per_batch=max_num_seqs),
        workload_hints=hints,
        timeout=10,
    ) as manager:
        for _ in range(2):  # the first time round warms up
            text.clear()
            start = time.perf_counter()
            for i, (prompt, out) in enumerate(requests):
                manager.add_request(list(prompt), request_id=f"{start}-{i}", max_new_tokens=out)
            while len(text) < len(requests):
                output = manager.get_result(timeout=1)
                if output is not None and output.is_finished():
                    text[output.request_id.rsplit("-", 1)[1]] = list(output.generated_tokens)
                elif output is None and not manager.is_running():
                    raise RuntimeError("transformers' generation thread ended")
            seconds = time.perf_counter() - start
            if seconds > WARM_ENOUGH_S:
                break
    tokens = sum(len(t) for t in text.values())
    row = {
        "engine": f"transformers {transformers.__version__} continuous batching",
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_s": tokens / seconds,
        "attention": model.config._attn_implementation,
    }
    return row, text
