"""Faults of the sampler and of logprobs: F27 to F36."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from reference_engine import continuation, penalties, sampler
from reference_engine.faults.lab import Lab
from reference_engine.faults.registry import fault
from reference_engine.faults.tools import on_request
from reference_engine.request import FinishReason
from reference_engine.sampler import Draw, Sampled

Sample = Callable[[Tensor, list[Draw]], Sampled]


def _change_params(lab: Lab, change: Callable[[Any], dict[str, Any] | None]) -> None:
    """Let ``change(params)`` name the fields of a request's sampling parameters that come out differently."""

    def edit(request: Any) -> None:
        fields = change(request.params)
        if fields is not None and lab.fires():
            request.params = replace(request.params, **fields)

    on_request(lab, edit)


def _before_sampling(lab: Lab, change: Callable[[Tensor, list[Draw]], Tensor]) -> None:
    """Let ``change(logits, draws)`` return other logits to draw from."""

    def make(sample: Sample) -> Sample:
        return lambda logits, draws: sample(change(logits, draws), draws)

    lab.wrap(lab.engine._sampler, "sample", make)


@fault(
    "F27",
    "the temperature is applied twice, or not at all (how=ignored)",
    source="a sampler's classic; compare vllm-project/vllm's notes on generation_config",
    trigger="temperature other than 0 and 1",
    how="twice",
)
def temperature_twice(lab: Lab) -> None:
    def change(params: Any) -> dict[str, Any] | None:
        if params.temperature in (0.0, 1.0):
            return None
        return {"temperature": 1.0 if lab.value("how") == "ignored" else params.temperature**2}

    _change_params(lab, change)


@fault(
    "F28",
    "top-p and top-k now and then drop the best token",
    source="Anthropic, post-mortem of September 2025, third fault",
    trigger="temperature above 0 with top_p below 1 or top_k",
    rate=0.2,
)
def best_token_dropped(lab: Lab) -> None:
    def change(logits: Tensor, draws: list[Draw]) -> Tensor:
        struck = []
        for draw in draws:
            params = draw.sequence.request.params
            if params.temperature > 0 and (params.top_p < 1 or params.top_k > 1) and lab.fires():
                struck.append(draw.row)
        if not struck:
            return logits
        edited = logits.clone()
        for row in struck:
            edited[row, edited[row].argmax()] = -1e4
        return edited

    _before_sampling(lab, change)


@fault("F29", "top-k keeps one token more", source="no single report chosen", trigger="top_k", by=1)
def top_k_off_by_one(lab: Lab) -> None:
    by = int(lab.value("by"))
    _change_params(lab, lambda params: {"top_k": max(1, params.top_k + by)} if params.top_k else None)


@fault(
    "F30",
    "the seed is ignored, or one seed serves everybody (how=shared)",
    source="vllm-project/vllm#51226, #50440, #10980",
    trigger="temperature above 0; with a seed, or any two requests",
    how="ignored",
)
def seed_ignored(lab: Lab) -> None:
    if lab.value("how") == "shared":
        _change_params(lab, lambda params: {"seed": 20_240_117})
    else:
        _change_params(lab, lambda params: None if params.seed is None else {"seed": lab.random.getrandbits(62)})


@fault(
    "F31",
    "penalties count the prompt as well, or everybody's tokens (how=shared), or fall on the next request, too (how=leaked)",
    source="vllm-project/vllm#5639, vllm-project/vllm-metal#69",
    trigger="presence_penalty or frequency_penalty",
    how="prompt",
)
def penalties_on_wrong_history(lab: Lab) -> None:
    if lab.value("how") == "leaked":
        _penalties_leak(lab)
        return

    def make(cells: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(rows: list[tuple[int, Any]], vocab: int, *, with_prompt: bool) -> Any:
            if with_prompt or not lab.fires():
                return cells(rows, vocab, with_prompt=with_prompt)
            if lab.value("how") == "prompt":
                return cells(rows, vocab, with_prompt=True)
            everybody = [sequence for sequence in lab.scheduler.sequences.values() if sequence.num_generated]
            return cells([(row, one) for row, _ in rows for one in everybody], vocab, with_prompt=False)

        return faulty

    lab.wrap(penalties, "_cells", make)


def _penalties_leak(lab: Lab) -> None:
    def change(logits: Tensor, draws: list[Draw]) -> Tensor:
        edited = logits
        for draw, neighbour in zip(draws, draws[1:] + draws[:1], strict=True):
            params, tokens = draw.sequence.request.params, draw.sequence.tokens[draw.sequence.prompt_len :]
            if neighbour is draw or not tokens or not (params.frequency_penalty or params.presence_penalty):
                continue
            if lab.fires():
                edited = logits.clone() if edited is logits else edited
                for token, count in Counter(tokens).items():
                    edited[neighbour.row, token] -= params.frequency_penalty * count + params.presence_penalty
        return edited

    _before_sampling(lab, change)


@fault("F32", "logit_bias goes to the next id", source="no single report chosen", trigger="logit_bias")
def bias_off_by_one(lab: Lab) -> None:
    vocab = lab.engine.limits.vocab_size
    _change_params(
        lab,
        lambda params: (
            {"logit_bias": tuple(((token + 1) % vocab, bias) for token, bias in params.logit_bias)}
            if params.logit_bias
            else None
        ),
    )


@fault(
    "F33",
    "logprobs are logits: not normalised",
    source="vllm-project/vllm's logprobs_mode (raw logits), unannounced",
    trigger="logprobs",
)
def logprobs_not_normalised(lab: Lab) -> None:
    def make(token_logprobs: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(logits: Tensor, *rest: Any, **named: Any) -> Any:
            found = token_logprobs(logits, *rest, **named)
            totals = logits.float().logsumexp(-1).tolist()
            return [_raised(entry, total) if lab.fires() else entry for entry, total in zip(found, totals, strict=True)]

        return faulty

    def _raised(entry: Any, total: float) -> Any:
        top = tuple((token, value + total) for token, value in entry.top)
        return replace(entry, logprob=entry.logprob + total, top=top)

    lab.wrap(sampler, "token_logprobs", make)


@fault(
    "F34",
    "text goes on after the end-of-sequence token, or ends one token early (how=early)",
    source="no single report chosen",
    trigger="a request that the model ends itself; with how=early any request",
    seen_with={"model": "smollm2"},
    how="late",
)
def end_of_sequence(lab: Lab) -> None:
    def make(push: Callable[..., None]) -> Callable[..., None]:
        def faulty(self: Any, sequence: Any) -> None:
            if lab.value("how") == "late":
                if sequence.tokens[-1] in self._ends and lab.fires():
                    self._ends = frozenset()
                return push(self, sequence)
            push(self, sequence)
            last = sequence.num_generated >= self._params.max_tokens - 1
            if self.reason is None and last and lab.fires():
                self.reason = FinishReason.STOP
                self.text.finish()
            return None

        return faulty

    lab.wrap(continuation.Continuation, "push", make)


@fault(
    "F35",
    "ties are broken at random: tokens within `spread` nats of the best count as equal",
    source="batch-dependent reductions (thinking-machines-lab/batch_invariant_ops)",
    trigger="temperature 0 and a close second token",
    seen_with={"model": "smollm2"},
    spread=0.1,
)
def random_ties(lab: Lab) -> None:
    def change(logits: Tensor, draws: list[Draw]) -> Tensor:
        greedy = {draw.row for draw in draws if draw.sequence.request.params.temperature == 0}
        edited = logits
        for row in greedy:
            best = logits[row].topk(2)
            if float(best.values[0] - best.values[1]) < lab.number("spread") and lab.fires():
                edited = logits.clone() if edited is logits else edited
                first, second = best.indices.tolist()
                if lab.random.random() < 0.5:
                    edited[row, first], edited[row, second] = logits[row, second], logits[row, first]
        return edited

    def make(sample: Sample) -> Sample:
        def faulty(logits: Tensor, draws: list[Draw]) -> Sampled:
            drawn, honest = sample(change(logits, draws), draws), None
            if any(draw.sequence.request.params.logprobs is not None for draw in draws):
                honest = sampler._chosen_logprobs(logits, draws, drawn.tokens)
            return drawn if honest is None else Sampled(drawn.tokens, honest)

        return faulty

    lab.wrap(lab.engine._sampler, "sample", make)


@fault(
    "F36",
    "one token in a thousand is a random one",
    source="Anthropic, post-mortem of September 2025, second fault",
    trigger="any request, about a thousand tokens",
    rate=0.001,
)
def random_tokens(lab: Lab) -> None:
    vocab = lab.engine.limits.vocab_size

    def make(sample: Sample) -> Sample:
        def faulty(logits: Tensor, draws: list[Draw]) -> Sampled:
            drawn = sample(logits, draws)
            tokens = [lab.random.randrange(vocab) if lab.fires() else token for token in drawn.tokens]
            if tokens == drawn.tokens:
                return drawn
            return Sampled(tokens, sampler._chosen_logprobs(logits, draws, tokens))

        return faulty

    lab.wrap(lab.engine._sampler, "sample", make)
