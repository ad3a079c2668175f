"""``chat``: conversations with ShareGPT-like lengths, optional turns, and system prompts shared by popularity.

::

    conversation:  [system k] user 0 -> answer 0 -> user 1 -> answer 1 -> ...
    prompt of turn t = everything before answer t;  system k is drawn by a Zipf law, the same for all turns

The answers inside later prompts are synthetic and planned, so that every engine is sent the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import ClassVar

from workloads.lengths import (
    SHAREGPT_INPUT_CV,
    SHAREGPT_INPUT_MEAN,
    SHAREGPT_OUTPUT_CV,
    SHAREGPT_OUTPUT_MEAN,
    LengthLaw,
    Shape,
)
from workloads.request import Load, Message, RequestSpec, Sampling, WorkloadError
from workloads.tokens import MIN_OWN_TOKENS, WORDS, Render, TokenCounter, WordCounter, fit_text
from workloads.workload import Endpoint


@dataclass(frozen=True, slots=True)
class Chat:
    """Parameters of ``chat``.  Lengths in tokens; ``scale`` multiplies both means, for small machines."""

    name: ClassVar[str] = "chat"

    input_mean: float = SHAREGPT_INPUT_MEAN
    input_cv: float = SHAREGPT_INPUT_CV
    output_mean: float = SHAREGPT_OUTPUT_MEAN
    output_cv: float = SHAREGPT_OUTPUT_CV
    shape: Shape = "gamma"
    scale: float = 1.0
    turns: int = 1  # user turns of a conversation
    think_s: float = 0.0  # pause between an answer and the next turn
    system_prompts: int = 0  # how many different system prompts there are; 0: none is sent
    system_tokens: int = 64  # words of each
    zipf: float = 1.0  # popularity of system prompt k is proportional to 1 / k ** zipf
    concurrency: int = 8
    temperature: float = 0.0
    endpoint: Endpoint = "chat"

    def __post_init__(self) -> None:
        if self.turns < 1:
            raise WorkloadError(f"workload chat: turns must be at least 1, not {self.turns}")
        if self.system_prompts < 0 or (self.system_prompts and self.system_tokens < 1):
            raise WorkloadError("workload chat: system_prompts must be 0 or more, and system_tokens at least 1")
        if self.think_s < 0:
            raise WorkloadError(f"workload chat: think_s must be 0 or more seconds, not {self.think_s}")
        if self.scale <= 0:
            raise WorkloadError(f"workload chat: scale must be above 0, not {self.scale}")
        check_endpoint(self.name, self.endpoint)
        if self.turns > 1 and self.endpoint != "chat":
            raise WorkloadError("workload chat: several turns need endpoint=chat")
        self._laws()

    def loads(self) -> tuple[Load, ...]:
        return (Load("closed", concurrency=self.concurrency),)

    def requests(
        self, count: int, seed: int, counter: TokenCounter, max_model_len: int | None = None
    ) -> tuple[RequestSpec, ...]:
        random = Random(f"{self.name}/{seed}")
        systems = [" ".join(random.choices(WORDS, k=self.system_tokens)) for _ in range(self.system_prompts)]
        weights = [1 / (k + 1) ** self.zipf for k in range(self.system_prompts)]
        requests: list[RequestSpec] = []
        conversation = 0
        while len(requests) < count:
            system = random.choices(systems, weights)[0] if systems else None
            self._converse(
                requests, min(self.turns, count - len(requests)), conversation, system, random, counter, max_model_len
            )
            conversation += 1
        return tuple(requests)

    def _laws(self) -> tuple[LengthLaw, LengthLaw]:
        return (
            LengthLaw(self.input_mean * self.scale, self.input_cv, self.shape),
            LengthLaw(self.output_mean * self.scale, self.output_cv, self.shape),
        )

    def _render(self, history: tuple[Message, ...], prefix: str, counter: TokenCounter) -> Render:
        """Counts the prompt that ends with a text as the user's message."""
        if self.endpoint == "completions":
            return lambda text: counter.count_prompt(prefix + text)
        return lambda text: counter.count_messages([*history, {"role": "user", "content": text}])

    def _converse(
        self,
        requests: list[RequestSpec],
        turns: int,
        conversation: int,
        system: str | None,
        random: Random,
        counter: TokenCounter,
        limit: int | None,
    ) -> None:
        """Append the turns of one conversation; it ends early when the next turn would not fit in ``limit``."""
        inputs, outputs = self._laws()
        history: list[Message] = []
        if system is not None and self.endpoint == "chat":
            history.append({"role": "system", "content": system})
        prefix = f"{system}\n\n" if system is not None and self.endpoint == "completions" else ""
        previous: RequestSpec | None = None
        for turn in range(turns):
            wanted_input, wanted_output = inputs.draw(random), outputs.draw(random)
            count = self._render(tuple(history), prefix, counter)
            base = count(WORDS[0]) - 1
            room = None if limit is None else limit - base
            if room is not None and room <= MIN_OWN_TOKENS:
                if turn == 0:
                    raise WorkloadError(
                        f"workload chat: {base} tokens of template and system prompt leave no room in max_model_len "
                        f"{limit}; lower system_tokens or raise the engine's max_model_len"
                    )
                return
            wanted_input = max(wanted_input, MIN_OWN_TOKENS)
            target = base + wanted_input if turn or system else max(wanted_input, base + MIN_OWN_TOKENS)
            if limit is not None:
                wanted_output = min(wanted_output, limit - base - MIN_OWN_TOKENS)
                target = min(target, limit - wanted_output)
            fitted = fit_text(target, random, count)
            user: Message = {"role": "user", "content": fitted.text}
            request = RequestSpec(
                index=len(requests),
                messages=(*history, user) if self.endpoint == "chat" else None,
                prompt=prefix + fitted.text if self.endpoint == "completions" else None,
                prompt_tokens=fitted.tokens,
                output_tokens=wanted_output,
                sampling=Sampling(temperature=self.temperature, seed=None if self.temperature == 0 else len(requests)),
                conversation=conversation if self.turns > 1 else None,
                turn=turn if self.turns > 1 else None,
                after=None if previous is None else previous.index,
                think_s=0.0 if previous is None else self.think_s,
                shared_tokens=min(base, fitted.tokens),
                exact=fitted.tokens == target and not isinstance(counter, WordCounter),
            )
            requests.append(request)
            previous = request
            answer: Message = {"role": "assistant", "content": " ".join(random.choices(WORDS, k=wanted_output))}
            history += [user, answer]


def check_endpoint(workload: str, endpoint: str) -> None:
    """Raise :class:`WorkloadError` unless ``endpoint`` is one that the client can drive."""
    if endpoint not in ("chat", "completions"):
        raise WorkloadError(f"workload {workload}: endpoint must be chat or completions, not {endpoint!r}")
