"""The weights, written down rather than trained: two layers that look up the token after the last two.

::

    residual stream (192 wide)
      name     0..23    the token's own code word           written by the embedding
      one      24       1
      start    25       BOS only
      back1   32..55    code word of the token before       layer 0, head 0
      back2   56..79    code word of the one before that    layer 0, head 1
      found   80..103   code word of the partner            layer 0, heads 2 and 3 (12 bits each)
      sure   104..127   found, bits of full length only     layer 0, MLP
      answer 128..139   12 bits of the answer's id          layer 1, heads 0 to 3 (3 bits each)
      lost   140        a look-up of layer 1 found nothing  layer 1, every head

    layer 0   K/V head 0   key: where it stands   value: name    queries: one back, two back
              K/V head 1   key: name              value: name    queries: the complement of my name
    layer 1   K/V head 0   key: back1             value: name    queries: the complement of sure (= my name)
              K/V head 1   key: back2             value: name    queries: back1

So at the cue "x a" layer 1 looks for the position whose predecessor is ``a`` (half of the answer's bits) and for the
one whose second predecessor is ``x`` (the other half): both are the answer's own.  Layer 0 has to find the partner of
``a`` first, because layer 1 asks with what it found.

Every look-up chooses between the keys and BOS, which scores less than a whole match and more than two halves of one.
So what is missing is not replaced by the next best: layer 0 returns nothing, layer 1 says "lost", and the answer is
the token ``?``.  (Without BOS the nearest names are averaged.  The average of the words nearest to a code word points
towards it, with a third of the length: that is what ``sure`` cuts off.)

A dot product of code words is 24 with itself and at most 8 with any other, so every softmax is a choice, by the
margins below.  Keys that tell positions use the dimensions that RoPE turns fast, code words those that it hardly turns.
All numbers are small, so bf16 holds them well enough.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from reference_engine.config import ModelConfig
from reference_engine.sentinel.code import INFO_BITS, LENGTH, NUM_WORDS, code_words
from reference_engine.sentinel.vocabulary import CONTEXT, FIRST_BYTE, VOCAB_SIZE

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM = 192, 64, 4, 2, 64
ROPE_THETA = 1e8
HALF = HEAD_DIM // 2  # RoPE pairs dimensions (i, i + HALF)

NAME, ONE, START, BACK1, BACK2, FOUND, SURE, ANSWER, LOST = 0, 24, 25, 32, 56, 80, 104, 128, 140
BOS, LOST_TOKEN = 0, FIRST_BYTE + ord("?")

FAST_PAIRS = 12  # 1 rad a position down to 1 in 560
FIRST_SLOW_PAIR = 20  # 1e-5 rad a position: 0.08 rad over the whole context
POSITION_SCORE = 240.0  # nats at the right distance; the next best is 32 below
POSITION_DECAY = 0.8  # each slower pair weighs this much less
MATCH_SCORE = 2.5  # nats for each of the 24 bits; a match is 40 above the next best key
BOS_BITS = 18  # BOS scores like so many matching bits
START_PAIR = 19  # the slow pair in which BOS is known
KEY_LENGTH = 4.0  # of the position key's components
FAINT = 0.25  # length of found and sure, so that finding nothing hardly changes what the next norm divides by
CUT = 0.66  # part of the full length below which a find does not count
STEEPNESS = 16.0
LOGIT_SCORE = 5.0  # per bit, before normalisation; two answers differ in at least one bit
LOST_SCORE = 100.0  # for each head that found nothing; more than all bits together

# Squared length of the residual stream where each norm reads it, if everything was found.
_AT_LAYER_0 = LENGTH + 1
_AT_MLP_0 = _AT_LAYER_0 + (2 + FAINT**2) * LENGTH
_AT_LAYER_1 = _AT_MLP_0 + FAINT**2 * LENGTH
_START = math.sqrt(LENGTH)  # makes BOS, which has no name, as long as the others

MODEL_CONFIG = ModelConfig(
    family="llama",
    vocab_size=VOCAB_SIZE,
    hidden_size=HIDDEN,
    intermediate_size=INTERMEDIATE,
    num_layers=2,
    num_heads=HEADS,
    num_kv_heads=KV_HEADS,
    head_dim=HEAD_DIM,
    max_position_embeddings=CONTEXT,
    rms_norm_eps=1e-6,
    rope_theta=ROPE_THETA,
    bos_token_id=0,
    eos_token_ids=(1,),
)


def weights() -> dict[str, Tensor]:
    """All tensors by Hugging Face name, float32."""
    names = torch.from_numpy(code_words())
    embedding = torch.zeros(VOCAB_SIZE, HIDDEN)
    embedding[:NUM_WORDS, NAME : NAME + LENGTH] = names
    embedding[:, ONE] = 1.0
    embedding[BOS, NAME : NAME + LENGTH] = 0.0
    embedding[BOS, START] = _START
    head = torch.zeros(VOCAB_SIZE, HIDDEN)
    head[:NUM_WORDS, ANSWER : ANSWER + INFO_BITS] = LOGIT_SCORE * names[:, :INFO_BITS]
    head[LOST_TOKEN, LOST] = LOST_SCORE
    return {
        "model.embed_tokens.weight": embedding,
        **_layer(0, _finder(), _cutter(), _AT_LAYER_0, _AT_MLP_0),
        **_layer(1, _recaller(), _idle_mlp(), _AT_LAYER_1, _AT_LAYER_1),
        "model.norm.weight": torch.ones(HIDDEN),
        "lm_head.weight": head,
    }


def _layer(
    index: int, attention: dict[str, Tensor], mlp: dict[str, Tensor], squared_in: float, squared_mlp: float
) -> dict[str, Tensor]:
    """One layer's tensors.  Its norms undo themselves: what they return is the stream as it is."""
    prefix = f"model.layers.{index}"
    return {
        f"{prefix}.input_layernorm.weight": torch.full((HIDDEN,), math.sqrt(squared_in / HIDDEN)),
        f"{prefix}.post_attention_layernorm.weight": torch.full((HIDDEN,), math.sqrt(squared_mlp / HIDDEN)),
        **{f"{prefix}.self_attn.{name}_proj.weight": tensor for name, tensor in attention.items()},
        **{f"{prefix}.mlp.{name}_proj.weight": tensor for name, tensor in mlp.items()},
    }


def _slow_dimensions() -> list[int]:
    """Where a head keeps a code word so that RoPE leaves it alone."""
    pairs = range(FIRST_SLOW_PAIR, HALF)
    return [*pairs, *(pair + HALF for pair in pairs)]


def _empty_attention() -> dict[str, Tensor]:
    return {
        "q": torch.zeros(HEADS * HEAD_DIM, HIDDEN),
        "k": torch.zeros(KV_HEADS * HEAD_DIM, HIDDEN),
        "v": torch.zeros(KV_HEADS * HEAD_DIM, HIDDEN),
        "o": torch.zeros(HIDDEN, HEADS * HEAD_DIM),
    }


def _route(matrix: Tensor, head: int, dimensions: list[int], source: int, factor: float) -> None:
    """Let a head's ``dimensions`` carry ``factor`` times the code word that the stream holds at ``source``."""
    for bit, dimension in enumerate(dimensions):
        matrix[head * HEAD_DIM + dimension, source + bit] = factor


def _point_back(query: Tensor, head: int, distance: int) -> None:
    """A query that scores highest with the position key ``distance`` tokens before it."""
    shares = POSITION_DECAY ** np.arange(FAST_PAIRS)
    shares *= POSITION_SCORE * math.sqrt(HEAD_DIM) / KEY_LENGTH / shares.sum()
    for pair, share in enumerate(shares):
        angle = -distance * ROPE_THETA ** (-pair / HALF)
        query[head * HEAD_DIM + pair, ONE] = share * math.cos(angle)
        query[head * HEAD_DIM + pair + HALF, ONE] = share * math.sin(angle)


def _finder() -> dict[str, Tensor]:
    """Attention of layer 0."""
    a = _empty_attention()
    strength = MATCH_SCORE * math.sqrt(HEAD_DIM)
    a["k"][:FAST_PAIRS, ONE] = KEY_LENGTH
    _point_back(a["q"], 0, distance=1)
    _point_back(a["q"], 1, distance=2)
    _route(a["k"], 1, _slow_dimensions(), NAME, 1.0)
    for head in (2, 3):
        _route(a["q"], head, _slow_dimensions(), NAME, -strength)
        a["q"][head * HEAD_DIM + START_PAIR, ONE] = strength * BOS_BITS
    a["k"][HEAD_DIM + START_PAIR, START] = 1.0 / _START
    for kv_head in range(KV_HEADS):
        _route(a["v"], kv_head, list(range(LENGTH)), NAME, 1.0)
    for bit in range(LENGTH):
        a["o"][BACK1 + bit, bit] = 1.0
        a["o"][BACK2 + bit, HEAD_DIM + bit] = 1.0
        a["o"][FOUND + bit, (2 if bit < LENGTH // 2 else 3) * HEAD_DIM + bit] = FAINT
    return a


def _cutter() -> dict[str, Tensor]:
    """MLP of layer 0: ``sure = found`` where a bit has (nearly) its full length, else 0.  Two neurons a bit."""
    gate, up = torch.zeros(INTERMEDIATE, HIDDEN), torch.zeros(INTERMEDIATE, HIDDEN)
    down = torch.zeros(HIDDEN, INTERMEDIATE)
    inner = STEEPNESS * (1.0 - CUT)
    full = inner / (1.0 + math.exp(-inner))  # silu
    for bit in range(LENGTH):
        for neuron, sign in ((2 * bit, 1.0), (2 * bit + 1, -1.0)):
            gate[neuron, FOUND + bit] = STEEPNESS * sign / FAINT
            gate[neuron, ONE] = -STEEPNESS * CUT
            up[neuron, ONE] = 1.0
            down[SURE + bit, neuron] = FAINT * sign / full
    return {"gate": gate, "up": up, "down": down}


def _idle_mlp() -> dict[str, Tensor]:
    return {
        "gate": torch.zeros(INTERMEDIATE, HIDDEN),
        "up": torch.zeros(INTERMEDIATE, HIDDEN),
        "down": torch.zeros(HIDDEN, INTERMEDIATE),
    }


def _recaller() -> dict[str, Tensor]:
    """Attention of layer 1."""
    a = _empty_attention()
    strength = MATCH_SCORE * math.sqrt(HEAD_DIM)
    # BOS has nothing before it and finds nothing, so the norm stretches it more than the others.
    start = math.sqrt(_AT_LAYER_0 / _AT_LAYER_1) / _START
    for kv_head, (source, asked, factor) in enumerate(((BACK1, SURE, -strength / FAINT), (BACK2, BACK1, strength))):
        _route(a["k"], kv_head, _slow_dimensions(), source, 1.0)
        _route(a["v"], kv_head, list(range(INFO_BITS)), NAME, 1.0)
        for head in (2 * kv_head, 2 * kv_head + 1):
            _route(a["q"], head, _slow_dimensions(), asked, factor)
            a["q"][head * HEAD_DIM + START_PAIR, ONE] = strength * BOS_BITS
            a["o"][LOST, head * HEAD_DIM + INFO_BITS] = 1.0
        a["k"][kv_head * HEAD_DIM + START_PAIR, START] = start
        a["v"][kv_head * HEAD_DIM + INFO_BITS, START] = start
    for bit in range(INFO_BITS):
        a["o"][ANSWER + bit, bit // 3 * HEAD_DIM + bit] = 1.0
    return a
