"""What an engine may offer.  A feature that is absent makes a case UNSUPPORTED; ``questions`` finds out which there are.

The names below are what cases write into ``needs``.  A feature is judged by its effect in the answer, never by a 200
alone: many servers accept every field and ignore most of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from harness.conformance.api import Api
from harness.engines.capabilities import Capabilities
from harness.engines.errors import ExpositionError
from harness.engines.metrics import parse_exposition
from harness.results.schema import EngineInfo

MEANINGS: dict[str, str] = {
    "completions": "/v1/completions answers",
    "chat": "/v1/chat/completions answers",
    "generate": "either of the two answers",
    "stream": "an answer comes as server-sent events",
    "logprobs": "completions return a log-probability a token",
    "chat_logprobs": "chat returns a log-probability a token",
    "echo": "completions return the prompt with the answer",
    "echo_logprobs": "completions score the prompt's own tokens",
    "prompt_logprobs": "completions score the prompt's own tokens in a field of their own",
    "scorer": "something scores given tokens: echo with logprobs, or a reference engine",
    "reference": "a naive fp32 engine with the same model stands by",
    "n": "several choices for one prompt",
    "n_greedy": "several choices at temperature 0, which some engines refuse as useless",
    "batch": "several prompts in one call",
    "company": "more than one request may run at a time",
    "id_prompts": "prompts as token ids",
    "return_ids": "answers tell their token ids",
    "token_ids": "ids of the generated tokens can be known, from the answer or its logprobs",
    "ignore_eos": "generation past the end-of-sequence token",
    "seed": "the seed decides what is sampled",
    "sampling": "a temperature above 0 samples",
    "logit_bias": "logit_bias acts",
    "top_k": "top_k acts",
    "min_p": "min_p acts",
    "penalties": "frequency_penalty acts",
    "repetition_penalty": "repetition_penalty acts",
    "beam": "use_beam_search acts",
    "stop": "a stop string ends the answer",
    "stop_in_output": "include_stop_str_in_output leaves the stop string in the answer",
    "stop_token_ids": "a token in stop_token_ids ends the answer",
    "min_tokens": "min_tokens puts off the end of the answer",
    "tools": "a tool call can be forced",
    "json_schema": "output can be held to a JSON schema",
    "cached_tokens": "usage tells prompt tokens found in the prefix cache",
    "cache_salt": "cache_salt separates prefix caches",
    "metrics": "/metrics shows something of our vocabulary",
    "tokenize": "the server, or the reference, tokenizes",
    "detokenize": "/detokenize makes text of token ids",
    "sentinel": "the model is the sentinel, whose answers are known",
    "api_key": "the suite was given a key that the engine demands",
    "offload": "the engine moves preempted KV elsewhere and back",
    "window": "the model attends through a sliding window of known size",
    "restart": "the suite launched the engine and can restart it",
    "debug_kv": "the debug endpoint for the KV pool",
    "debug_hooks": "the debug endpoints that disturb the pool",
    "pool": "the size of the KV pool is known",
    "context": "the longest sequence is known",
}


KNOWABLE = {
    "batch", "beam", "cache_salt", "detokenize", "echo", "echo_logprobs", "id_prompts", "ignore_eos", "logit_bias", "logprobs",
    "min_p", "min_tokens", "n", "penalties", "prompt_logprobs", "repetition_penalty", "return_ids", "sampling", "seed", "stop",
    "stop_in_output", "stop_token_ids", "token_ids", "top_k",
}  # fmt: skip
# By kind of engine, as their documentation says.
CLAIMED: dict[str, set[str]] = {"pagedbench": KNOWABLE, "vllm": KNOWABLE}


@dataclass(slots=True)
class Features:
    """The engine's features and the numbers that cases scale with."""

    info: EngineInfo
    capabilities: Capabilities
    names: set[str] = field(default_factory=set)
    served: set[str] = field(default_factory=set)  # of completions and chat: the endpoints that exist, working or not
    unknown: set[str] = field(default_factory=set)  # could not be found out; counts as absent, and says so
    most_choices: int = 1  # of one call, as far as a case asks for
    top_logprobs: int = 0  # alternatives a position that completions return
    metric_names: set[str] = field(default_factory=set)
    block_size: int | None = None  # tokens
    pool_tokens: int | None = None  # tokens the KV pool holds
    max_model_len: int | None = None  # tokens
    max_num_seqs: int | None = None
    window: int | None = None  # tokens of the sliding window
    tokens_per_s: float = 20.0  # of one stream
    latency_s: float = 1.0  # of one short answer

    def has(self, *names: str) -> bool:
        return all(name in self.names for name in names)

    def missing(self, needs: tuple[str, ...]) -> list[str]:
        """Needs that are absent; ``metric:NAME`` asks for one metric, ``a|b`` for either."""
        return [need for need in needs if not any(self._offers(part) for part in need.split("|"))]

    def _offers(self, need: str) -> bool:
        if need.startswith("metric:"):
            return need.removeprefix("metric:") in self.metric_names
        return need in self.names

    def document(self) -> dict[str, Any]:
        """For the report."""
        return {
            "features": sorted(self.names),
            "absent": sorted(set(MEANINGS) - self.names),
            "unknown": sorted(self.unknown),
            "metrics": sorted(self.metric_names),
            "top_logprobs": self.top_logprobs,
            "most_choices": self.most_choices,
            "block_size": self.block_size,
            "pool_tokens": self.pool_tokens,
            "max_model_len": self.max_model_len,
            "max_num_seqs": self.max_num_seqs,
            "tokens_per_s": round(self.tokens_per_s, 1),
        }


def whole(value: Any) -> int | None:
    """A positive whole number in a setting, whatever type it was given as."""
    try:
        number = int(value)
    except (TypeError, ValueError):
        return None
    return number if number > 0 else None


async def read_metrics(api: Api) -> dict[str, float]:
    """The engine's metrics in our vocabulary; empty when /metrics is silent or broken."""
    reply = await api.request("GET", "/metrics")
    if reply.status != 200:
        return {}
    try:
        return parse_exposition(reply.text)
    except ExpositionError:
        return {}
