"""The sampler against plain numpy, against exact distributions, and against itself in other company."""

from __future__ import annotations

import secrets

import numpy as np
import pytest
import torch
from scipy import stats

from reference_engine.filters import filter_weights
from reference_engine.heads import HeadDraw, draw_nucleus, draw_top_k, is_top_k_in_head
from reference_engine.logprobs import token_logprobs
from reference_engine.penalties import edit_logits, needs_edit
from reference_engine.request import Request, SamplingParams, Sequence
from reference_engine.rng import splitmix64, uniforms
from reference_engine.sampler import FAULT, Draw, Sampler

EOS = (2,)


def make_sequence(params: SamplingParams, prompt: list[int], output: list[int], *, index: int = 0) -> Sequence:
    request = Request(request_id="r", prompt=tuple(prompt), params=params)
    return Sequence(seq_id=0, request=request, index=index, tokens=[*prompt, *output])


def edited(logits: np.ndarray, sequence: Sequence, eos: tuple[int, ...]) -> np.ndarray:
    """min_tokens, bias, repetition, frequency, presence, by their definitions."""
    p = sequence.request.params
    out = logits.astype(np.float64).copy()
    generated = sequence.tokens[sequence.prompt_len :]
    if len(generated) < p.min_tokens:
        for token in [*p.stop_token_ids, *(() if p.ignore_eos else eos)]:
            out[token] = -np.inf
    for token, bias in p.logit_bias:
        out[token] += bias
    for token in set(sequence.tokens):
        out[token] = out[token] / p.repetition_penalty if out[token] > 0 else out[token] * p.repetition_penalty
    for token in set(generated):
        out[token] -= p.frequency_penalty * generated.count(token) + p.presence_penalty
    return out


def distribution(logits: np.ndarray, p: SamplingParams) -> np.ndarray:
    """Probabilities after temperature, min-p, top-k and top-p, each on what the one before left."""
    scaled = logits.astype(np.float64) / p.temperature
    return filtered(np.exp(scaled - scaled.max()), p)


def filtered(weights: np.ndarray, p: SamplingParams) -> np.ndarray:
    """min-p, top-k and top-p of ``weights``, normalised."""
    probs = weights / weights.sum()
    if p.min_p > 0:
        probs[probs < p.min_p * probs.max()] = 0
    if 0 < p.top_k < len(probs):
        probs[probs < np.sort(probs)[-p.top_k]] = 0
    probs /= probs.sum()
    if p.top_p < 1:
        descending = np.sort(probs)[::-1]
        last = int(np.argmax(np.cumsum(descending) >= p.top_p - 1e-12))
        probs[probs < descending[last]] = 0
    return probs / probs.sum()


@pytest.fixture
def rng() -> np.random.Generator:
    seed = secrets.randbits(32)
    print("seed", seed)
    return np.random.default_rng(seed)


def sample(logits: np.ndarray, sequences: list, *, rows: list[int] | None = None) -> list[int]:
    rows = rows if rows is not None else list(range(len(sequences)))
    draws = [Draw(row, sequence, sequence.index) for row, sequence in zip(rows, sequences, strict=True)]
    return Sampler(EOS).sample(torch.from_numpy(logits.astype(np.float32)), draws).tokens


def fits(counts: np.ndarray, probabilities: np.ndarray) -> bool:
    """Chi-square, with the rarest outcomes pooled until every cell expects at least 10; true if one cell is left."""
    total = counts.sum()
    order = np.argsort(-probabilities)
    wanted, observed = probabilities[order] * total, counts[order]
    tails = np.cumsum(wanted[::-1])[::-1]  # expected from this outcome on
    cells = int(np.argmin((wanted >= 10) & (tails - wanted >= 10))) + 1
    wanted = np.append(wanted[: cells - 1], wanted[cells - 1 :].sum())
    observed = np.append(observed[: cells - 1], observed[cells - 1 :].sum())
    return len(wanted) == 1 or bool(stats.chisquare(observed, wanted * total / wanted.sum()).pvalue > 1e-6)


# --- random numbers -------------------------------------------------------------------------------------------------


def test_splitmix64_matches_published_sequence() -> None:
    # The first outputs of SplitMix64 seeded with 1234567 (state advances by the golden gamma between outputs).
    gamma = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + i * gamma) & (2**64 - 1) for i in range(3)], dtype=np.uint64)
    assert splitmix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_uniforms_are_uniform_along_each_word_of_the_key(rng: np.random.Generator) -> None:
    n = 20_000
    start = int(rng.integers(2**60))
    constant = [7] * n
    walk = list(range(n))
    for seeds, indices, positions in (
        ([start + i for i in walk], constant, constant),
        ([start] * n, walk, constant),
        ([start] * n, constant, walk),
    ):
        u = uniforms(seeds, indices, positions)
        assert u.min() >= 0.0
        assert u.max() < 1.0
        assert stats.kstest(u, "uniform").pvalue > 1e-5
        assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 5 / np.sqrt(n)


def test_uniforms_take_any_integer_seed() -> None:
    u = uniforms([-1, 2**64 - 1, 0, 2**64], [0] * 4, [0] * 4)
    assert u[0] == u[1]
    assert u[2] == u[3]
    assert u[0] != u[2]


def test_swapping_words_of_the_key_changes_the_draw() -> None:
    assert len(set(uniforms([1, 2, 0, 0, 1, 2], [2, 1, 1, 2, 0, 0], [0, 0, 2, 1, 2, 1]).tolist())) == 6


# --- edits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(repetition_penalty=1.7),
        SamplingParams(repetition_penalty=0.6),
        SamplingParams(presence_penalty=1.3),
        SamplingParams(frequency_penalty=-0.8),
        SamplingParams(logit_bias=((3, 5.0), (11, -100.0))),
        SamplingParams(min_tokens=50, stop_token_ids=(9, 4)),
        SamplingParams(min_tokens=50, ignore_eos=True),
        SamplingParams(
            repetition_penalty=1.2,
            presence_penalty=-1.0,
            frequency_penalty=0.5,
            logit_bias=((5, 2.5),),
            min_tokens=40,
            stop_token_ids=(7,),
        ),
    ],
)
def test_edits_match_their_definitions(params: SamplingParams, rng: np.random.Generator) -> None:
    vocab, batch = 37, 5
    logits = rng.normal(0, 3, (batch, vocab)).astype(np.float32)
    sequences = [
        make_sequence(params, rng.integers(vocab, size=9).tolist(), rng.integers(vocab, size=k * 6).tolist())
        for k in range(batch)
    ]
    assert all(needs_edit(s) for s in sequences)
    work = torch.from_numpy(logits.copy())
    edit_logits(work, list(enumerate(sequences)), EOS)
    for row, sequence in enumerate(sequences):
        np.testing.assert_allclose(work[row].numpy(), edited(logits[row], sequence, EOS), rtol=2e-6, atol=2e-6)


def test_edits_touch_only_the_rows_they_are_given(rng: np.random.Generator) -> None:
    logits = torch.from_numpy(rng.normal(0, 3, (4, 23)).astype(np.float32))
    work = logits.clone()
    sequence = make_sequence(SamplingParams(repetition_penalty=2.0, frequency_penalty=1.0), [1, 2], [3, 3, 4])
    edit_logits(work, [(2, sequence)], EOS)
    assert torch.equal(work[[0, 1, 3]], logits[[0, 1, 3]])
    changed = (work[2] != logits[2]).nonzero().squeeze(1).tolist()
    assert set(changed) <= {1, 2, 3, 4}
    assert {3, 4} <= set(changed)


def test_min_tokens_forbids_endings_until_reached() -> None:
    logits = np.full((1, 20), -5.0)
    logits[0, 2] = 9.0
    params = SamplingParams(temperature=0.0, min_tokens=3)
    for generated in range(5):
        token = sample(logits, [make_sequence(params, [5], [6] * generated)])[0]
        assert (token == 2) == (generated >= 3)


# --- filters --------------------------------------------------------------------------------------------------------


FILTERS = [
    SamplingParams(top_k=1),
    SamplingParams(top_k=7),
    SamplingParams(top_k=10_000),
    SamplingParams(top_p=0.05),
    SamplingParams(top_p=0.6),
    SamplingParams(top_p=0.999),
    SamplingParams(min_p=0.1),
    SamplingParams(top_k=20, top_p=0.7),
    SamplingParams(top_k=40, min_p=0.02, top_p=0.9),
    SamplingParams(temperature=0.4, top_p=0.8),
    SamplingParams(temperature=2.5, min_p=0.3),
]


@pytest.mark.parametrize("vocab", [50, 256, 6000])
def test_each_filter_keeps_what_the_numpy_reference_keeps(vocab: int, rng: np.random.Generator) -> None:
    logits = rng.normal(0, 2.5, (len(FILTERS), vocab)).astype(np.float32)
    scaled = logits / np.array([[p.temperature] for p in FILTERS], dtype=np.float32)
    weights = torch.from_numpy(np.exp(scaled - scaled.max(-1, keepdims=True)))
    given = weights.double().numpy()
    filter_weights(weights, FILTERS)
    for row, params in enumerate(FILTERS):
        expected = filtered(given[row], params)
        got = weights[row].double().numpy()
        assert np.array_equal(got > 0, expected > 0), params
        np.testing.assert_allclose(got / got.sum(), expected, rtol=1e-4)


def test_top_p_looks_past_its_sorted_heads_when_the_distribution_is_flat() -> None:
    vocab = 20_000
    steps = np.linspace(0.0, 1e-3, vocab, dtype=np.float32)
    weights = torch.from_numpy(np.stack([np.exp(steps - steps.max()), np.exp((steps - steps.max()) * 1e5)]))
    params = [SamplingParams(top_p=0.5), SamplingParams(top_p=0.5)]
    filter_weights(weights, params)
    for row, scale in enumerate((1.0, 1e5)):
        expected = distribution(steps.astype(np.float64) * scale, params[row]) > 0
        assert abs(int((weights[row] > 0).sum()) - int(expected.sum())) <= 1


def test_ties_at_the_cut_are_all_kept() -> None:
    weights = torch.tensor([[1.0, 0.5, 0.5, 0.5, 0.1]])
    for params in (SamplingParams(top_k=2), SamplingParams(top_p=0.5)):
        work = weights.clone()
        filter_weights(work, [params])
        assert (work > 0).tolist() == [[True, True, True, True, False]]


def draw_both_ways(
    logits: np.ndarray, params: list[SamplingParams], unit: np.ndarray
) -> list[tuple[HeadDraw, torch.Tensor]]:
    """Tokens drawn from the head and from the whole row: for the rows with top-k, then for those without."""
    found = []
    for with_top_k in (True, False):
        rows = [row for row, p in enumerate(params) if is_top_k_in_head(p) == with_top_k]
        if not rows:
            continue
        chosen, mine, u = torch.from_numpy(logits[rows]), [params[row] for row in rows], torch.from_numpy(unit[rows])
        temperature = torch.tensor([[p.temperature] for p in mine])
        weights = torch.softmax(chosen / temperature, dim=-1)
        head = draw_top_k(chosen, mine, temperature, u) if with_top_k else draw_nucleus(weights, mine, u)
        filter_weights(weights, mine)
        mass = weights.double().cumsum(-1)
        found.append((head, torch.searchsorted(mass, u[:, None] * mass[:, -1:], right=True).squeeze(1)))
    return found


@pytest.mark.parametrize("vocab", [40, 129, 3000, 32768])
@pytest.mark.parametrize("coarse", [False, True])
def test_the_head_draws_what_the_whole_row_draws(vocab: int, coarse: bool, rng: np.random.Generator) -> None:
    settled, batch = 0, 24
    for number in range(6):
        if number >= 3 and settled > 3 * batch / 4:
            break  # three rounds of nothing but flat and tied rows come once in some hundred runs, six do not
        params = []
        for _ in range(batch):
            choice = {
                "temperature": float(rng.choice([0.3, 1.0, 2.0])),
                "top_k": int(rng.choice([0, 0, 1, 5, 50, 128])),
                "top_p": float(rng.choice([1.0, 0.95, 0.5])),
                "min_p": float(rng.choice([0.0, 0.02, 0.2])),
            }
            if not (choice["top_k"] or choice["min_p"] or choice["top_p"] < 1.0):
                choice["top_p"] = 0.9
            params.append(SamplingParams(**choice))
        logits = rng.normal(0, rng.choice([0.5, 3.0]), (batch, vocab)).astype(np.float32)
        if coarse:
            logits = np.round(logits * 2) / 2  # ties everywhere
        for head, expected in draw_both_ways(logits, params, rng.random(batch)):
            assert torch.equal(head.tokens[head.settled], expected[head.settled])
            settled += int(head.settled.sum())
    assert settled > 3 * batch / 4


def test_a_head_that_cannot_know_does_not_settle(rng: np.random.Generator) -> None:
    flat = np.zeros((3, 4096), dtype=np.float32)
    params = [SamplingParams(top_k=50), SamplingParams(top_p=0.9), SamplingParams(min_p=0.5)]
    for head, _ in draw_both_ways(flat, params, rng.random(3)):
        assert not head.settled.any()


# --- drawing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab", [1, 2, 61, 256, 320, 49152])
def test_greedy_takes_the_first_largest(vocab: int, rng: np.random.Generator) -> None:
    logits = np.round(rng.normal(0, 1, (6, vocab)) * 4) / 4  # coarse, so that there are ties
    got = sample(logits, [make_sequence(SamplingParams(temperature=0.0), [1], []) for _ in range(6)])
    assert got == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.5),
        SamplingParams(top_k=5),
        SamplingParams(top_p=0.8),
        SamplingParams(min_p=0.15),
        SamplingParams(presence_penalty=1.5, repetition_penalty=1.3),
    ],
)
def test_draws_follow_the_exact_distribution(params: SamplingParams, rng: np.random.Generator) -> None:
    vocab, n, chunk = 64, 20_000, 500
    logits = rng.normal(0, 1.5, vocab).astype(np.float32)
    prompt, output = [1, 2, 3], [5, 5, 8]
    counts = np.zeros(vocab)
    base = int(rng.integers(2**62))
    for start in range(0, n, chunk):
        sequences = []
        for i in range(start, start + chunk):
            seeded = SamplingParams(**{**{f: getattr(params, f) for f in params.__slots__}, "seed": base + i})
            sequences.append(make_sequence(seeded, prompt, output))
        tokens = sample(np.broadcast_to(logits, (chunk, vocab)), sequences)
        counts += np.bincount(tokens, minlength=vocab)
    expected = distribution(edited(logits, sequences[0], EOS), params)
    assert counts[expected == 0].sum() == 0
    assert fits(counts, expected)


@pytest.mark.parametrize("vocab", [64, 192, 512, 49152, 50257])
def test_the_token_is_where_the_uniform_number_falls(vocab: int, rng: np.random.Generator) -> None:
    rows = 40
    logits = rng.normal(0, 2, (rows, vocab)).astype(np.float32)
    seeds = [int(seed) for seed in rng.integers(2**62, size=rows)]
    sequences = [make_sequence(SamplingParams(seed=seed), [1, 2], []) for seed in seeds]
    tokens = sample(logits, sequences)
    u = uniforms(seeds, [0] * rows, [2] * rows)
    for row, token in enumerate(tokens):
        mass = np.cumsum(distribution(logits[row], SamplingParams()))
        below = mass[token - 1] if token else 0.0
        assert below - 1e-6 <= u[row] * mass[-1] < mass[token] + 1e-6


def test_positions_of_one_seed_are_independent_draws(rng: np.random.Generator) -> None:
    vocab, n = 16, 8_000
    logits = rng.normal(0, 1, vocab).astype(np.float32)
    params = SamplingParams(seed=int(rng.integers(2**62)))
    sequences = [make_sequence(params, [1] * (1 + i % n), []) for i in range(n)]
    tokens = np.array(sample(np.broadcast_to(logits, (n, vocab)), sequences))
    expected = distribution(logits, params)
    assert fits(np.bincount(tokens, minlength=vocab), expected)
    pairs = np.bincount(tokens[:-1] * vocab + tokens[1:], minlength=vocab * vocab)
    assert stats.chi2_contingency(pairs.reshape(vocab, vocab)[expected > 0.05][:, expected > 0.05] + 1e-9).pvalue > 1e-6


def random_params(rng: np.random.Generator) -> SamplingParams:
    return SamplingParams(
        temperature=float(rng.choice([0.0, 0.0, 0.7, 1.0, 3.0])),
        top_k=int(rng.choice([0, 0, 3, 40])),
        top_p=float(rng.choice([1.0, 0.9, 0.3])),
        min_p=float(rng.choice([0.0, 0.0, 0.1])),
        repetition_penalty=float(rng.choice([1.0, 1.3])),
        presence_penalty=float(rng.choice([0.0, 0.5])),
        frequency_penalty=float(rng.choice([0.0, -0.4])),
        logit_bias=((4, 1.5),) if rng.random() < 0.3 else (),
        min_tokens=int(rng.choice([0, 12])),
        stop_token_ids=(6,),
        seed=int(rng.integers(2**63)),
        logprobs=None if rng.random() < 0.5 else int(rng.integers(4)),
    )


@pytest.mark.parametrize("vocab", [96, 3072])
def test_a_row_draws_the_same_token_alone_and_in_any_company(vocab: int, rng: np.random.Generator) -> None:
    batch = 24
    logits = rng.normal(0, 2, (batch, vocab)).astype(np.float32)
    sequences = [
        make_sequence(
            random_params(rng), rng.integers(vocab, size=5).tolist(), rng.integers(vocab, size=8).tolist(), index=i % 3
        )
        for i in range(batch)
    ]
    untouched = logits.copy()
    together = sample(logits, sequences)
    assert np.array_equal(logits, untouched)
    for row, sequence in enumerate(sequences):
        assert sample(logits[row : row + 1], [sequence]) == [together[row]]
    order = rng.permutation(batch)
    assert sample(logits, [sequences[i] for i in order], rows=order.tolist()) == [together[i] for i in order]


def test_continuations_of_one_row_differ_by_index_and_repeat_by_seed(rng: np.random.Generator) -> None:
    logits = torch.zeros(1, 4096)
    sequence = make_sequence(SamplingParams(seed=int(rng.integers(2**63))), [1, 2], [])
    draws = [Draw(0, sequence, index) for index in range(8)]
    first = Sampler(EOS).sample(logits, draws).tokens
    assert len(set(first)) >= 6
    assert Sampler(EOS).sample(logits, draws).tokens == first
    assert Sampler(EOS).sample(logits, draws[3:4]).tokens == first[3:4]


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1e6])
def test_extreme_temperatures_do_not_overflow(temperature: float, rng: np.random.Generator) -> None:
    logits = rng.normal(0, 50, (3, 512))
    got = sample(logits, [make_sequence(SamplingParams(temperature=temperature, seed=1), [1], []) for _ in range(3)])
    assert all(0 <= token < 512 for token in got)
    if temperature < 1:
        assert got == logits.astype(np.float32).argmax(-1).tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("vocab", [50, 512])
def test_a_faulty_row_is_marked_and_its_neighbours_are_not(bad: float, temperature: float, vocab: int) -> None:
    logits = np.random.default_rng(3).normal(0, 1, (3, vocab))
    clean = logits.copy()
    if bad == -np.inf:
        logits[1, :] = bad
    else:
        logits[1, vocab // 3] = bad
    params = SamplingParams(temperature=temperature, seed=5, top_p=0.9, logprobs=2)
    sequences = [make_sequence(params, [1], [3]) for _ in range(3)]
    tokens = sample(logits, sequences)
    reference = sample(clean, sequences)
    assert tokens[1] == FAULT
    assert tokens[0] == reference[0]
    assert tokens[2] == reference[2]


# --- logprobs -------------------------------------------------------------------------------------------------------


def test_logprobs_are_of_the_raw_distribution(rng: np.random.Generator) -> None:
    vocab = 300
    logits = rng.normal(0, 3, (3, vocab)).astype(np.float32)
    params = [
        SamplingParams(temperature=2.0, top_k=3, repetition_penalty=2.0, seed=1, logprobs=4),
        SamplingParams(temperature=0.0, logprobs=0),
        SamplingParams(temperature=0.0),
    ]
    sequences = [make_sequence(p, [1, 2], [3]) for p in params]
    draws = [Draw(row, sequence, 0) for row, sequence in enumerate(sequences)]
    sampled = Sampler(EOS).sample(torch.from_numpy(logits), draws)
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    assert sampled.logprobs[2] is None
    for row, count in ((0, 4), (1, 0)):
        entry = sampled.logprobs[row]
        assert entry is not None
        assert entry.token == sampled.tokens[row]
        assert len(entry.top) == count
        assert entry.logprob == pytest.approx(exact[row, entry.token], abs=1e-5)
        best = np.argsort(-exact[row])[:count]
        assert [token for token, _ in entry.top] == best.tolist()
        np.testing.assert_allclose([value for _, value in entry.top], exact[row, best], atol=1e-5)


def test_ranks_count_from_one(rng: np.random.Generator) -> None:
    logits = rng.permutation(40).astype(np.float32)
    order = np.argsort(-logits)
    rows = torch.from_numpy(np.stack([logits, logits]))
    found = token_logprobs(rows, [int(order[0]), int(order[6])], [0, 0], ranks=True)
    assert [entry.rank for entry in found] == [1, 7]
