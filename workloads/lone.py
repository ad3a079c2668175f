"""Lone requests: unique prompts that share nothing, with given laws for both lengths.  The base of two workloads."""

from __future__ import annotations

from random import Random

from workloads.lengths import Law
from workloads.request import Message, RequestSpec, Sampling, WorkloadError
from workloads.tokens import MIN_OWN_TOKENS, WORDS, TokenCounter, WordCounter, fit_text
from workloads.workload import Endpoint


def lone_requests(
    workload: str,
    count: int,
    seed: int,
    counter: TokenCounter,
    max_model_len: int | None,
    *,
    inputs: Law,
    outputs: Law,
    endpoint: Endpoint,
    temperature: float,
) -> tuple[RequestSpec, ...]:
    """``count`` independent requests.  Where prompt + output exceed ``max_model_len``, the prompt gives way first."""
    random = Random(f"{workload}/{seed}")

    def count_tokens(text: str) -> int:
        if endpoint == "completions":
            return counter.count_prompt(text)
        user: Message = {"role": "user", "content": text}
        return counter.count_messages([user])

    base = count_tokens(WORDS[0]) - 1
    if max_model_len is not None and max_model_len <= base + MIN_OWN_TOKENS:
        raise WorkloadError(
            f"workload {workload}: max_model_len {max_model_len} has no room for a prompt and one answer token"
        )
    requests = []
    for index in range(count):
        target, output = max(base + MIN_OWN_TOKENS, inputs.draw(random)), outputs.draw(random)
        if max_model_len is not None:
            output = min(output, max_model_len - base - MIN_OWN_TOKENS)
            target = min(target, max_model_len - output)
        fitted = fit_text(target, base, random, count_tokens)
        requests.append(
            RequestSpec(
                index=index,
                messages=({"role": "user", "content": fitted.text},) if endpoint == "chat" else None,
                prompt=fitted.text if endpoint == "completions" else None,
                prompt_tokens=fitted.tokens,
                output_tokens=output,
                sampling=Sampling(temperature=temperature, seed=None if temperature == 0 else index),
                shared_tokens=min(base, fitted.tokens),
                exact=fitted.tokens == target and not isinstance(counter, WordCounter),
            )
        )
    return tuple(requests)
