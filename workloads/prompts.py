"""Building prompts piece by piece: one place that knows endpoints, exact lengths and the room in a context."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from workloads.request import Message, RequestSpec, Sampling, WorkloadError
from workloads.tokens import MIN_OWN_TOKENS, WORDS, TokenCounter, WordCounter, fit_text
from workloads.workload import Endpoint


@dataclass(slots=True)
class PromptMaker:
    """Makes requests of one workload.  ``limit`` is the longest prompt + answer in tokens."""

    workload: str
    endpoint: Endpoint
    counter: TokenCounter
    random: Random
    limit: int | None = None
    temperature: float = 0.0

    def count(self, text: str) -> int:
        """Tokens of the whole prompt that asks for ``text``."""
        if self.endpoint == "completions":
            return self.counter.count_prompt(text)
        user: Message = {"role": "user", "content": text}
        return self.counter.count_messages([user])

    @property
    def overhead(self) -> int:
        """Tokens that surround a text: template, begin-of-text."""
        return self.count(WORDS[0]) - 1

    def words(self, tokens: int) -> str:
        """Words that come to ``tokens`` tokens, template not counted."""
        overhead = self.overhead
        return fit_text(overhead + tokens, overhead, self.random, self.count).text

    def make(
        self, index: int, prompt_tokens: int, output_tokens: int, *, prefix: str = "", shared: int = 0, n: int = 1
    ) -> RequestSpec:
        """A request whose whole prompt has ``prompt_tokens`` tokens and begins with ``prefix``.

        Where prompt and answers do not fit the context, the answer gives way first, the prompt's own words next.
        ``shared`` is the number of prompt tokens that another request's prompt begins with, on purpose.
        """
        lead = f"{prefix}\n\n" if prefix else ""
        overhead = self.count(lead + WORDS[0]) - 1
        target = max(prompt_tokens, overhead + MIN_OWN_TOKENS)
        if self.limit is not None:
            room = self.limit - overhead - MIN_OWN_TOKENS
            if room < 1:
                raise WorkloadError(
                    f"workload {self.workload}: {overhead} tokens of template and prefix leave no room in "
                    f"max_model_len {self.limit}; make the prefix shorter or raise the engine's max_model_len"
                )
            output_tokens = min(output_tokens, room)
            target = min(target, self.limit - output_tokens)
        fitted = fit_text(target, overhead, self.random, lambda text: self.count(lead + text))
        return self.of_text(index, lead + fitted.text, fitted.tokens, output_tokens, target, shared, n)

    def of_text(
        self, index: int, text: str, tokens: int, output_tokens: int, target: int, shared: int = 0, n: int = 1
    ) -> RequestSpec:
        """A request for a text that is there already and came to ``tokens`` tokens."""
        return RequestSpec(
            index=index,
            messages=({"role": "user", "content": text},) if self.endpoint == "chat" else None,
            prompt=text if self.endpoint == "completions" else None,
            prompt_tokens=tokens,
            output_tokens=output_tokens,
            sampling=Sampling(self.temperature, seed=None if self.temperature == 0 else index),
            shared_tokens=min(max(shared, self.overhead), tokens),
            exact=tokens == target and not isinstance(self.counter, WordCounter),
            n=n,
        )
