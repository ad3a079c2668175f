"""The checkpoint: what is committed is what the builder writes, and it answers by its rule with the promised margin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from reference_engine.attention import make_backend
from reference_engine.config import CacheConfig
from reference_engine.models.hf_config import parse_hf_config
from reference_engine.models.loader import LoadedModel, load_model
from reference_engine.models.safetensors_dir import read_json
from reference_engine.plan import ScheduledSeq, StepPlan
from reference_engine.runner import ModelRunner
from reference_engine.sentinel import CHECKPOINT, circuit, vocabulary
from reference_engine.sentinel.code import code_words
from reference_engine.sentinel.export import model_config, rounded_weights, write_directory, write_gguf
from workloads import sentinel
from workloads.sentinel import Deck

CPU = torch.device("cpu")
GAP = 5.0  # nats between the best and the second best token


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("sentinel", dtype=torch.float32, device=CPU)


def logits_of(loaded: LoadedModel, tokens: tuple[int, ...], *, block_size: int = 16) -> torch.Tensor:
    """Next-token logits of every position, computed over paged K/V in chunks of 512."""
    blocks = -(-len(tokens) // block_size)
    cache = CacheConfig(num_blocks=blocks, block_size=block_size)
    runner = ModelRunner(loaded.model, loaded.config, cache, make_backend("gather", CPU), CPU, loaded.model.dtype)
    rows = [
        runner.execute(
            StepPlan(0, (ScheduledSeq(0, at, tokens[at : at + 512], tuple(range(blocks)), 0, prompt_logprobs=True),))
        ).prompt[0]
        for at in range(0, len(tokens), 512)
    ]
    return torch.cat(rows)


def judged(loaded: LoadedModel, length: int, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """A passage twice: logits at every position of the second time that the rule decides, and the right tokens."""
    passage = Deck(seed).deal(length).tokens
    tokens = (sentinel.BOS, *passage, *passage)
    return logits_of(loaded, tokens)[length + 2 : -1], torch.tensor(tokens[length + 3 :])


def test_code_words_are_far_apart_and_closed_under_complement() -> None:
    words = code_words()
    products = words @ words.T
    np.fill_diagonal(products, 0)
    assert products.max() == 8
    assert (words[::-1] == -words).all()


def test_the_committed_checkpoint_is_what_the_builder_writes(tmp_path: Path) -> None:
    write_directory(tmp_path)
    committed = load_file(CHECKPOINT / "model.safetensors")
    assert all(torch.equal(tensor, committed.pop(name)) for name, tensor in rounded_weights().items())
    assert not committed
    for file in tmp_path.iterdir():
        if file.suffix != ".safetensors":
            assert file.read_bytes() == (CHECKPOINT / file.name).read_bytes(), file.name
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) < 8e6


def test_the_config_describes_the_circuit() -> None:
    assert parse_hf_config(read_json(CHECKPOINT / "config.json")) == circuit.MODEL_CONFIG
    assert circuit.MODEL_CONFIG.num_heads > circuit.MODEL_CONFIG.num_kv_heads  # grouped queries
    windowed = parse_hf_config(model_config(sliding_window=64))
    assert windowed.sliding_windows == (64, 64)


@pytest.mark.parametrize("length", [4, 30, 500, 3000])
def test_every_judged_answer_is_right_with_a_wide_margin(loaded: LoadedModel, length: int) -> None:
    logits, right = judged(loaded, length)
    best = logits.topk(2)
    assert torch.equal(best.indices[:, 0], right)
    assert (best.values[:, 0] - best.values[:, 1]).min() >= GAP


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_coarser_types_change_no_answer(dtype: torch.dtype) -> None:
    logits, right = judged(load_model("sentinel", dtype=dtype, device=CPU), 400)
    best = logits.float().topk(2)
    assert torch.equal(best.indices[:, 0], right)
    assert (best.values[:, 0] - best.values[:, 1]).min() >= GAP


def test_the_gguf_file_computes_the_same(tmp_path: Path, loaded: LoadedModel) -> None:
    write_gguf(tmp_path / "s.gguf")
    from_gguf = load_model(str(tmp_path / "s.gguf"), dtype=torch.float32, device=CPU)
    tokens = (sentinel.BOS, *Deck(2).deal(60).question(20))
    torch.testing.assert_close(logits_of(from_gguf, tokens), logits_of(loaded, tokens), atol=1e-4, rtol=1e-5)
    text = Deck(3).deal(20).text + " Grüße 🙂"
    assert from_gguf.tokenizer.encode(text) == loaded.tokenizer.encode(text)


def says(loaded: LoadedModel, tokens: tuple[int, ...]) -> int:
    return int(logits_of(loaded, tokens)[-1].argmax())


def test_what_cannot_be_looked_up_is_lost(loaded: LoadedModel) -> None:
    passage = Deck(4).deal(200)
    second = passage.cue(50)[1]
    without_partner = tuple(token for token in passage.question(50) if token != sentinel.partner(second))
    assert says(loaded, (sentinel.BOS, *passage.question(50))) == passage.tokens[50]
    assert says(loaded, (sentinel.BOS, *without_partner)) == sentinel.LOST
    assert says(loaded, (sentinel.BOS, *passage.tokens, *Deck(9).deal(4).tokens)) == sentinel.LOST


def test_a_position_that_is_one_late_is_noticed(loaded: LoadedModel) -> None:
    """The cue's second token computed one position late finds no predecessor, so half of the answer is missing."""
    passage = Deck(6).deal(95 // 2 * 2)
    cache = CacheConfig(num_blocks=8, block_size=16)
    table = tuple(range(8))
    for at in range(2, len(passage.tokens), 3):
        runner = ModelRunner(loaded.model, loaded.config, cache, make_backend("gather", CPU), CPU, torch.float32)
        context = (sentinel.BOS, *passage.tokens, passage.cue(at)[0])
        runner.execute(StepPlan(0, (ScheduledSeq(0, 0, context, table, 0),)))
        late = runner.execute(StepPlan(0, (ScheduledSeq(0, len(context) + 1, passage.cue(at)[1:], table, 1),)))
        assert int(late.sampled.argmax()) == sentinel.LOST


def test_tokenizer_and_grammar_agree(loaded: LoadedModel) -> None:
    words = list(range(sentinel.FIRST_WORD, sentinel.NUM_TOKENS))
    assert loaded.tokenizer.encode(sentinel.spell(words)) == [sentinel.BOS, *words]
    assert sentinel.read(sentinel.spell(words)) == words
    assert loaded.tokenizer.decode(words) == sentinel.spell(words)
    assert (sentinel.CONSONANTS, sentinel.VOWELS, sentinel.CONTEXT) == (
        vocabulary.CONSONANTS,
        vocabulary.VOWELS,
        vocabulary.CONTEXT,
    )
    assert loaded.tokenizer.eos_id == sentinel.EOS
    chat = [{"role": "system", "content": " baba"}, {"role": "user", "content": " bici"}]
    rendered = loaded.tokenizer.encode(loaded.tokenizer.render_chat(chat), add_special_tokens=False)
    assert rendered == [
        sentinel.BOS,
        sentinel.SYSTEM,
        *sentinel.read("baba"),
        sentinel.USER,
        *sentinel.read("bici"),
        sentinel.ASSISTANT,
    ]


@pytest.mark.parametrize("text", ["", " ", "Hello, world", "naïve café 🙂 漢字", " bali\n\tbali  cudo", "\x00\x7f"])
def test_any_text_survives_the_tokenizer(loaded: LoadedModel, text: str) -> None:
    assert loaded.tokenizer.decode(loaded.tokenizer.encode(text)) == text
