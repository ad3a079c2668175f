"""From logits to tokens, one vectorised pass for all rows that need the same treatment.

::

    logits [S, V] --+-- plain greedy rows ------------------------------> argmax
                    +-- the other rows -- bias, penalties --+---> argmax                     (temperature 0)
                    |                                       +---> draw from the largest few  (if filters keep no others)
                    |                                       +---> draw from all tokens
                    |                                             by inverse CDF: one uniform number a row
                    +-- log-softmax of the untouched logits (rows that asked for logprobs)

A draw depends on nothing but its own row and the key (seed, continuation index, position): see ``rng``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reference_engine.filters import filter_weights
from reference_engine.heads import draw_nucleus, draw_top_k, is_top_k_in_head
from reference_engine.logprobs import token_logprobs
from reference_engine.outputs import TokenLogprob
from reference_engine.penalties import edit_logits, needs_edit
from reference_engine.request import SamplingParams, Sequence
from reference_engine.rng import uniforms

MIN_TEMPERATURE = 1e-5
FAULT = -1  # stands in the token list where a row's logits held no finite maximum


@dataclass(slots=True)
class Draw:
    """One token to draw from row ``row`` of a step's logits, as continuation ``index`` of ``sequence``'s request."""

    row: int
    sequence: Sequence
    index: int


@dataclass(frozen=True, slots=True)
class Sampled:
    """Per draw: the token id, or ``FAULT`` where the largest logit is NaN or infinite; logprobs where asked for."""

    tokens: list[int]
    logprobs: list[TokenLogprob | None]


class Sampler:
    """Draws the tokens of one step.  Holds no state of any sequence."""

    def __init__(self, eos_token_ids: tuple[int, ...]) -> None:
        self._eos_token_ids = eos_token_ids

    @torch.inference_mode()
    def sample(self, logits: Tensor, draws: list[Draw]) -> Sampled:
        """Draw one token for each of ``draws`` from ``logits [S, V]`` (float32; not changed)."""
        logits = logits.contiguous()
        plain: list[int] = []
        other: list[int] = []
        for number, draw in enumerate(draws):
            is_plain = draw.sequence.request.params.temperature == 0.0 and not needs_edit(draw.sequence)
            (plain if is_plain else other).append(number)
        tokens = [FAULT] * len(draws)
        if plain:
            for number, token in zip(plain, _greedy(_rows(logits, [draws[i].row for i in plain])), strict=True):
                tokens[number] = token
        if other:
            for number, token in zip(other, self._draw_others(logits, [draws[i] for i in other]), strict=True):
                tokens[number] = token
        return Sampled(tokens, _chosen_logprobs(logits, draws, tokens))

    def _draw_others(self, logits: Tensor, draws: list[Draw]) -> list[int]:
        edited = [(row, draw.sequence) for row, draw in enumerate(draws) if needs_edit(draw.sequence)]
        work = _rows(logits, [draw.row for draw in draws])
        if edited:
            work = work.clone() if work is logits else work
            edit_logits(work, edited, self._eos_token_ids)
        hot = [row for row, draw in enumerate(draws) if draw.sequence.request.params.temperature > 0.0]
        if len(hot) == len(draws):
            return _random(work, draws)
        tokens = [FAULT] * len(draws)
        cold = [row for row, draw in enumerate(draws) if draw.sequence.request.params.temperature == 0.0]
        for row, token in zip(cold, _greedy(_rows(work, cold)), strict=True):
            tokens[row] = token
        if hot:
            for row, token in zip(hot, _random(_rows(work, hot), [draws[row] for row in hot]), strict=True):
                tokens[row] = token
        return tokens


def _rows(logits: Tensor, rows: list[int]) -> Tensor:
    """The given rows; the tensor itself when they are all of its rows in order."""
    if rows == list(range(logits.shape[0])):
        return logits
    return logits.index_select(0, torch.tensor(rows, device=logits.device))


def _lane(vocab: int) -> int:
    """Width of the second level of a two-level search over the vocabulary; 1 where no convenient width divides it."""
    return next((width for width in (256, 128, 64) if vocab % width == 0), 1)


def _greedy(logits: Tensor) -> list[int]:
    """Index of the largest logit of each row (the first of equals), ``FAULT`` where it is not finite."""
    rows, vocab = logits.shape
    lane = _lane(vocab)
    if lane == 1 or logits.device.type != "cpu":
        values, tokens = logits.max(-1)
    else:
        # On a CPU torch finds a maximum 20 times faster than its index, so the index is searched in one lane only.
        lanes = logits.view(rows, -1, lane)
        best = lanes.amax(-1).argmax(-1)
        values, inside = lanes[torch.arange(rows), best].max(-1)
        tokens = best * lane + inside
    return tokens.masked_fill_(~values.isfinite(), FAULT).tolist()


def _random(logits: Tensor, draws: list[Draw]) -> list[int]:
    """Draw from ``logits [R, V]`` by temperature, filters, inverse CDF; ``FAULT`` as in ``_greedy``."""
    params = [draw.sequence.request.params for draw in draws]
    device = logits.device
    unit = torch.from_numpy(
        uniforms([p.seed or 0 for p in params], [d.index for d in draws], [d.sequence.known for d in draws])
    ).to(device)
    # Below the floor a draw is greedy but for exact ties; it keeps logit / temperature finite.
    floor = MIN_TEMPERATURE
    temperature = torch.tensor([[max(p.temperature, floor)] for p in params], dtype=logits.dtype, device=device)
    tokens = torch.full((len(draws),), FAULT, device=device)
    left = list(range(len(draws)))
    tried = [row for row in left if is_top_k_in_head(params[row])]
    if tried:
        some = torch.tensor(tried, device=device)
        head = draw_top_k(_rows(logits, tried), [params[row] for row in tried], temperature[some], unit[some])
        tokens[some] = head.tokens
        settled = {row for row, done in zip(tried, head.settled.tolist(), strict=True) if done}
        left = [row for row in left if row not in settled]
    if left:
        some = torch.tensor(left, device=device)
        weights = torch.softmax(logits.index_select(0, some).div_(temperature[some]), dim=-1)
        tokens[some] = _draw_from_all(weights, [params[row] for row in left], unit[some])
    # A NaN anywhere makes the maximum NaN, so a faulty row is known whichever way it went.
    return tokens.masked_fill_(~logits.amax(-1).isfinite(), FAULT).tolist()


def _draw_from_all(weights: Tensor, params: list[SamplingParams], unit: Tensor) -> Tensor:
    """One token per row of ``weights [R, V]`` (overwritten), int64 [R]."""
    tokens = torch.full((len(params),), FAULT, device=weights.device)
    left = list(range(len(params)))
    tried = [row for row, p in enumerate(params) if not p.top_k and (p.top_p < 1.0 or p.min_p > 0.0)]
    if tried:
        some = torch.tensor(tried, device=weights.device)
        head = draw_nucleus(_rows(weights, tried), [params[row] for row in tried], unit[some])
        tokens[some] = head.tokens
        settled = {row for row, done in zip(tried, head.settled.tolist(), strict=True) if done}
        left = [row for row in left if row not in settled]
    if left:
        some = torch.tensor(left, device=weights.device)
        rest = _rows(weights, left)
        filter_weights(rest, [params[row] for row in left])
        tokens[some] = _inverse_cdf(rest, unit[some])
    return tokens


def _inverse_cdf(weights: Tensor, unit: Tensor) -> Tensor:
    """Per row of ``weights [R, V]``: the first token whose cumulated weight exceeds ``unit[r]`` of the sum; int64 [R].

    Sums are float64, so that the order in which a device adds them cannot move a boundary by more than about 1e-15.
    """
    rows, vocab = weights.shape
    lane = _lane(vocab)
    lanes = weights.view(rows, -1, lane)
    cumulated = lanes.sum(-1, dtype=torch.float64).cumsum(-1)
    target = unit[:, None] * cumulated[:, -1:]
    which = torch.searchsorted(cumulated, target, right=True).clamp_(max=cumulated.shape[1] - 1)
    before = torch.where(which > 0, cumulated.gather(1, (which - 1).clamp_(min=0)), 0.0)
    inside = lanes[torch.arange(rows, device=weights.device), which.squeeze(1)].cumsum(-1, dtype=torch.float64)
    # The lane's sum was rounded in another order than its running sum: stay below the end, so that a token is found.
    rest = torch.minimum(target - before, torch.nextafter(inside[:, -1:], torch.zeros_like(target)))
    return (which * lane + torch.searchsorted(inside, rest, right=True)).squeeze(1)


def _chosen_logprobs(logits: Tensor, draws: list[Draw], tokens: list[int]) -> list[TokenLogprob | None]:
    result: list[TokenLogprob | None] = [None] * len(draws)
    wanted = [
        (number, draw.row, tokens[number], draw.sequence.request.params.logprobs)
        for number, draw in enumerate(draws)
        if draw.sequence.request.params.logprobs is not None and tokens[number] != FAULT
    ]
    if wanted:
        found = token_logprobs(
            _rows(logits, [row for _, row, _, _ in wanted]),
            [token for _, _, token, _ in wanted],
            [count or 0 for _, _, _, count in wanted],
        )
        for (number, _, _, _), value in zip(wanted, found, strict=True):
            result[number] = value
    return result
