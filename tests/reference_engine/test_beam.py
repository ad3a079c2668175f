"""Beam search through scheduler, engine and sampler against transformers' ``generate`` on the same random weights."""

from __future__ import annotations

import itertools
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from reference_engine.attention import make_backend
from reference_engine.config import CacheConfig, SchedulerConfig
from reference_engine.detokenizer import TokenTable
from reference_engine.engine import Engine, EngineLimits
from reference_engine.models.loader import load_model
from reference_engine.outputs import SequenceOutput
from reference_engine.request import FinishReason, Request, RequestRejected, SamplingParams
from reference_engine.runner import ModelRunner

sys.path.insert(0, str(Path(__file__).parent))
import hash_model

CPU = torch.device("cpu")
VOCAB, EOS = 64, 5
PROMPTS = ([7, 3, 9, 22, 41, 13, 60], [1, 50, 50, 2, 19], [33, 8, 12, 45, 30, 4, 9, 10, 11, 12, 61, 2])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """(transformers' model, ours): tiny, random, sharp enough that beams end at different lengths."""
    import transformers

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=EOS,
        bos_token_id=1,
        pad_token_id=0,
        initializer_range=0.4,
        tie_word_embeddings=False,
    )
    theirs = transformers.LlamaForCausalLM(config).float().eval()
    directory = tmp_path_factory.mktemp("beam")
    theirs.save_pretrained(directory)
    sys.path.insert(0, str(Path(__file__).parent / "models"))
    from tests.reference_engine.models.conftest import write_tokenizer

    write_tokenizer(directory)
    return theirs, load_model(str(directory), dtype=torch.float32, device=CPU)


def make_engine(loaded: Any, *, num_blocks: int = 200, block_size: int = 4, **limits: Any) -> Engine:
    cache_fields = {name: limits.pop(name) for name in ("prefix_caching", "num_host_blocks") if name in limits}
    cache = CacheConfig(num_blocks, block_size, **cache_fields)
    runner = ModelRunner(loaded.model, loaded.config, cache, make_backend("gather", CPU), CPU, torch.float32)
    runner.poison()
    config = SchedulerConfig(**{"max_model_len": 64, "max_num_batched_tokens": 64, "max_num_seqs": 16, **limits})
    engine_limits = EngineLimits(VOCAB, (EOS,), loaded.config.kv_bytes_per_token(4))
    return Engine(runner, engine_limits, config, cache, TokenTable(hash_model.ByteTokenizer()), audit_every=1)


def run(engine: Engine, requests: list[Request]) -> dict[tuple[str, int], list[SequenceOutput]]:
    for request in requests:
        engine.add(request)
    found: dict[tuple[str, int], list[SequenceOutput]] = defaultdict(list)
    for _ in range(3000):
        if not engine.has_work:
            break
        for output in engine.step():
            assert output.error is None, output.error
            found[output.request_id, output.index].append(output)
    assert not engine.has_work
    values = engine.stats().values
    assert values["kv_slots_allocated"] == values["kv_host_blocks_used"] == 0
    return dict(found)


def theirs_of(model: Any, prompt: list[int], params: SamplingParams) -> list[tuple[list[int], float]]:
    answer = model.generate(
        torch.tensor([prompt]),
        num_beams=params.beam_width,
        num_return_sequences=params.n,
        max_new_tokens=params.max_tokens,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **({"min_new_tokens": params.min_tokens} if params.min_tokens else {}),
    )
    texts = []
    for row, score in zip(answer.sequences.tolist(), answer.sequences_scores.tolist(), strict=True):
        tokens = row[len(prompt) :]
        if EOS in tokens:
            tokens = tokens[: tokens.index(EOS) + 1]
        texts.append((tokens, score))
    return texts


def beam(prompt: list[int], name: str = "r", **fields: Any) -> Request:
    params = SamplingParams(**{"max_tokens": 12, "temperature": 0.0, "beam_width": 4, "n": 4, **fields})
    return Request(name, tuple(prompt), params)


def check(model: Any, request: Request, found: dict[tuple[str, int], list[SequenceOutput]]) -> None:
    expected = theirs_of(model, list(request.prompt), request.params)
    for index, (tokens, score) in enumerate(expected):
        outputs = found[request.request_id, index]
        assert [o.token for o in outputs] == tokens
        assert outputs[-1].beam_score == pytest.approx(score, rel=1e-5, abs=1e-4)
        assert outputs[-1].finish_reason is (FinishReason.STOP if tokens[-1] == EOS else FinishReason.LENGTH)
        assert all(o.finish_reason is None for o in outputs[:-1])
    assert (request.request_id, len(expected)) not in found


@pytest.mark.parametrize(
    ("width", "penalty", "early"),
    [(1, 1.0, False), (2, 1.0, False), (3, 0.0, True), (4, 2.0, "never"), (6, -1.0, False), (4, 0.7, True)],
)
def test_texts_and_scores_are_transformers(models: tuple[Any, Any], width: int, penalty: float, early: Any) -> None:
    theirs, ours = models
    requests = [
        beam(p, f"r{i}", beam_width=width, n=max(1, width - 1), length_penalty=penalty, early_stopping=early)
        for i, p in enumerate(PROMPTS)
    ]
    if width == 1:  # theirs is greedy search then, without scores
        found = run(make_engine(ours), requests)
        greedy = run(
            make_engine(ours),
            [Request("g", r.prompt, SamplingParams(max_tokens=12, temperature=0.0)) for r in requests[:1]],
        )
        assert [o.token for o in found["r0", 0]] == [o.token for o in greedy["g", 0]]
        return
    found = run(make_engine(ours), requests)
    for request in requests:
        check(theirs, request, found)


def test_min_tokens_and_early_ends(models: tuple[Any, Any]) -> None:
    theirs, ours = models
    requests = [beam(p, f"r{i}", min_tokens=6, max_tokens=9) for i, p in enumerate(PROMPTS)]
    found = run(make_engine(ours), requests)
    for request in requests:
        check(theirs, request, found)


@pytest.mark.parametrize(
    ("preemption", "prefix_caching", "block_size"),
    list(itertools.product(["recompute", "swap"], [True, False], [1, 4])),
)
def test_scores_under_pressure(models: tuple[Any, Any], preemption: str, prefix_caching: bool, block_size: int) -> None:
    theirs, ours = models
    requests = [beam(p, f"r{i}") for i, p in enumerate(PROMPTS)]
    engine = make_engine(
        ours,
        num_blocks=24 // block_size,
        block_size=block_size,
        max_model_len=24,
        prefix_caching=prefix_caching,
        preemption=preemption,
        num_host_blocks=400,
        max_num_seqs=8,
        watermark=0.0,
    )
    found = run(engine, requests)
    values = engine.stats().values
    assert values["preemptions_total"] > 0
    assert (values["preemptions_swapped_total"] > 0) == (preemption == "swap")
    for request in requests:
        check(theirs, request, found)


def test_beams_share_the_blocks_of_what_they_have_in_common(models: tuple[Any, Any]) -> None:
    _, ours = models
    engine = make_engine(ours)
    engine.add(beam(PROMPTS[2] * 3, beam_width=6, n=6, min_tokens=12))
    shared = []
    while engine.has_work:
        engine.step()
        values = engine.stats().values
        if values["requests_running"] == 6:
            shared.append(values["kv_slots_logical"] / values["kv_slots_live"])
    assert min(shared) > 2.5, "36 tokens of prompt, six beams"


def test_logprobs_add_up_to_the_score(models: tuple[Any, Any]) -> None:
    _, ours = models
    outputs = run(make_engine(ours), [beam(PROMPTS[0], logprobs=3, length_penalty=0.0)])["r", 0]
    entries = [o.logprob for o in outputs]
    assert all(e is not None and len(e.top) == 3 and e.token == o.token for e, o in zip(entries, outputs, strict=True))
    assert sum(e.logprob for e in entries if e) == pytest.approx(outputs[-1].beam_score, abs=1e-5)


def test_an_aborted_beam_leaves_nothing(models: tuple[Any, Any]) -> None:
    _, ours = models
    engine = make_engine(ours)
    engine.add(beam(PROMPTS[0], min_tokens=12))
    for _ in range(4):
        engine.step()
    assert engine.abort("r")
    assert not engine.has_work
    assert engine.stats().values["kv_slots_allocated"] == 0


def test_what_a_beam_cannot_be(models: tuple[Any, Any]) -> None:
    engine = make_engine(models[1], max_num_seqs=4)
    with pytest.raises(RequestRejected, match="a beam of 5 exceeds the 4"):
        engine.add(beam(PROMPTS[0], beam_width=5))
    with pytest.raises(RequestRejected, match="n=4 is more than the beam's width 2"):
        engine.add(beam(PROMPTS[0], beam_width=2))
