"""Constrained requests in the engine: valid whatever is drawn, whoever is preempted, whoever runs beside them."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from reference_engine.constraint import Constraint, mask_logits
from reference_engine.detokenizer import TokenTable
from reference_engine.engine import Engine
from reference_engine.grammar import Compiler, document
from reference_engine.outputs import SequenceOutput
from reference_engine.request import FinishReason, Request, SamplingParams, Sequence

sys.path.insert(0, str(Path(__file__).parent))
import hash_model

EOS, VOCAB = hash_model.EOS, hash_model.VOCAB


def form(*fields: str) -> dict[str, Any]:
    leaves = [{"type": "string", "maxLength": 8}, {"type": "integer"}, {"enum": ["red", "green"]}, {"type": "null"}]
    return {
        "type": "object",
        "properties": {name: leaves[number % len(leaves)] for number, name in enumerate(fields)},
        "required": list(fields),
        "additionalProperties": False,
    }


SCHEMAS = [form("a", "b"), form("name", "size", "colour"), form("x", "y", "z", "none")]
TOKENIZER = hash_model.ByteTokenizer()
COMPILER = Compiler(TOKENIZER, TOKENIZER.encode, TokenTable(TOKENIZER), vocab_size=VOCAB, eos_token_ids=(EOS,))
WARM = SamplingParams(temperature=1.3, max_tokens=200, seed=3)


def request(name: str, schema: dict[str, Any] | None, params: SamplingParams = WARM, prompt: str = "hello") -> Request:
    constraint = None if schema is None else COMPILER.compile(document(schema))
    return Request(name, tuple(prompt.encode()), params, constraint=constraint)


def run(engine: Engine, *requests: Request) -> dict[tuple[str, int], list[SequenceOutput]]:
    for one in requests:
        engine.add(one)
    found: dict[tuple[str, int], list[SequenceOutput]] = defaultdict(list)
    for _ in range(5000):
        if not engine.has_work:
            return dict(found)
        for output in engine.step():
            found[output.request_id, output.index].append(output)
    raise AssertionError("the engine does not come to an end")


def text_of(outputs: list[SequenceOutput]) -> str:
    assert outputs[-1].finish_reason is FinishReason.STOP, outputs[-1]
    assert outputs[-1].stop_reason is None
    return "".join(output.text for output in outputs)


@pytest.mark.parametrize(
    "params",
    [
        WARM,
        replace(WARM, temperature=0.0),
        replace(WARM, temperature=2.0, top_k=2),
        replace(WARM, top_p=0.3),
        replace(WARM, min_p=0.5),
        replace(WARM, frequency_penalty=2.0, presence_penalty=-2.0, repetition_penalty=5.0),
        replace(WARM, logit_bias=((ord("{"), -100.0), (ord("?"), 100.0))),
        replace(WARM, logprobs=3),
    ],
    ids=["warm", "greedy", "top_k", "top_p", "min_p", "penalties", "bias", "logprobs"],
)
def test_the_answer_matches_its_schema_however_it_is_drawn(params: SamplingParams) -> None:
    engine, _ = hash_model.make_engine()
    outputs = run(engine, *(request(f"r{i}", schema, params, f"prompt {i}") for i, schema in enumerate(SCHEMAS)))
    for i, schema in enumerate(SCHEMAS):
        jsonschema.validate(json.loads(text_of(outputs[f"r{i}", 0])), schema)
        if params.logprobs is not None:
            assert all(one.logprob is not None and one.logprob.token == one.token for one in outputs[f"r{i}", 0])


def test_every_continuation_has_a_state_of_its_own() -> None:
    engine, _ = hash_model.make_engine()
    outputs = run(engine, request("r", SCHEMAS[1], replace(WARM, n=6)))
    texts = [text_of(outputs["r", index]) for index in range(6)]
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMAS[1])
    assert len(set(texts)) > 3


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("host_blocks", [0, 100])
def test_preemption_changes_no_token(host_blocks: int, overlap: bool) -> None:
    mode = "swap" if host_blocks else "recompute"
    small: dict[str, Any] = {"max_model_len": 100, "prefix_caching": False, "watermark": 0.0, "preemption": mode}
    tight, _ = hash_model.make_engine(num_blocks=30, num_host_blocks=host_blocks, overlap=overlap, **small)
    roomy, _ = hash_model.make_engine(num_blocks=400)
    params = replace(WARM, max_tokens=90)
    asked = [request(f"r{i}", SCHEMAS[i % 3], replace(params, seed=i), f"p{i}") for i in range(8)]
    hard = run(tight, *asked)
    easy = run(roomy, *(replace(one, arrival_ns=0) for one in asked))
    values = tight.stats().values
    assert values["preemptions_total"] > 0
    assert values["preemptions_swapped_total"] == (values["preemptions_total"] if host_blocks else 0)
    for i in range(8):
        assert text_of(hard[f"r{i}", 0]) == text_of(easy[f"r{i}", 0])
        jsonschema.validate(json.loads(text_of(hard[f"r{i}", 0])), SCHEMAS[i % 3])


def test_free_requests_beside_constrained_ones_are_as_alone() -> None:
    free = [request(f"free{i}", None, replace(WARM, seed=i, max_tokens=40), f"free {i}") for i in range(3)]
    alone = run(hash_model.make_engine()[0], *(replace(one) for one in free))
    together = run(hash_model.make_engine()[0], *free, *(request(f"r{i}", s) for i, s in enumerate(SCHEMAS)))
    for one in free:
        key = (one.request_id, 0)
        assert [out.token for out in together[key]] == [out.token for out in alone[key]]


def test_an_abort_leaves_the_others_alone() -> None:
    engine, _ = hash_model.make_engine()
    engine.add(request("gone", SCHEMAS[2]))
    for _ in range(4):
        engine.step()
    engine.add(request("stays", SCHEMAS[2]))
    engine.abort("gone")
    outputs = run(engine)
    jsonschema.validate(json.loads(text_of(outputs["stays", 0])), SCHEMAS[2])


def test_a_limit_cuts_the_document_and_says_so() -> None:
    engine, _ = hash_model.make_engine()
    outputs = run(engine, request("r", SCHEMAS[2], replace(WARM, max_tokens=7)))["r", 0]
    assert outputs[-1].finish_reason is FinishReason.LENGTH
    assert "".join(one.text for one in outputs).startswith('{"x":"')


def test_a_token_outside_the_grammar_ends_the_request_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = hash_model.make_engine()
    broken = request("broken", SCHEMAS[0])
    engine.add(broken)
    engine.step()
    (sequence,) = engine.scheduler.sequences.values()
    sequence.tokens[-1] = ord("x")
    outputs = run(engine, request("sound", SCHEMAS[0]))
    assert "grammar can no longer be followed" in (outputs["broken", 0][-1].error or "")
    jsonschema.validate(json.loads(text_of(outputs["sound", 0])), SCHEMAS[0])


def _started(constraint: Constraint | None) -> Sequence:
    return Sequence(0, Request("r", (1,), WARM, constraint=constraint), tokens=[1])


def test_only_constrained_rows_are_masked_and_broken_ones_stay_broken() -> None:
    logits = torch.randn(3, VOCAB)
    logits[2, ord("a")] = float("nan")
    before = logits.clone()
    constraint = COMPILER.compile(document({"type": "object"}))
    mask_logits(logits, [(0, _started(None)), (1, _started(constraint)), (2, _started(constraint))])
    assert torch.equal(logits[0], before[0])
    assert torch.equal(logits[1].isfinite().nonzero().flatten(), torch.tensor([ord("{")]))
    assert logits[1, ord("{")] == before[1, ord("{")]
    assert logits[2].isnan().any()
