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
        builder = _Builder(self, random, counter, max_model_len)
        conversation = 0
        while len(builder.requests) < count:
            system = random.choices(systems, weights)[0] if systems else None
            builder.converse(conversation, system, min(self.turns, count - len(builder.requests)))
            conversation += 1
        return tuple(builder.requests)

    def _laws(self) -> tuple[LengthLaw, LengthLaw]:
        return (
            LengthLaw(self.input_mean * self.scale, self.input_cv, self.shape),
            LengthLaw(self.output_mean * self.scale, self.output_cv, self.shape),
        )


class _Builder:
    """Appends conversations to ``requests``."""

    def __init__(self, chat: Chat, random: Random, counter: TokenCounter, limit: int | None) -> None:
        self.requests: list[RequestSpec] = []
        self._chat = chat
        self._inputs, self._outputs = chat._laws()
        self._random = random
        self._counter = counter
        self._limit = limit
        self._first_overheads: dict[str | None, int] = {}  # by system prompt, before the first turn

    def converse(self, conversation: int, system: str | None, turns: int) -> None:
        """Append one conversation.  It ends early when the next turn would not fit the model."""
        history: list[Message] = []
        if system is not None and self._chat.endpoint == "chat":
            history.append({"role": "system", "content": system})
        previous: RequestSpec | None = None
        for turn in range(turns):
            wanted_input = max(MIN_OWN_TOKENS, self._inputs.draw(self._random))
            wanted_output = self._outputs.draw(self._random)
            count = self._render(tuple(history), system)
            overhead = self._overhead(count, system, turn)
            if self._limit is not None and self._limit - overhead <= MIN_OWN_TOKENS:
                if turn == 0:
                    raise WorkloadError(
                        f"workload chat: {overhead} tokens of template and system prompt leave no room in "
                        f"max_model_len {self._limit}; lower system_tokens or raise the engine's max_model_len"
                    )
                return
            target = overhead + wanted_input
            if turn == 0 and system is None:  # the whole prompt has the drawn length
                target = max(wanted_input, overhead + MIN_OWN_TOKENS)
            if self._limit is not None:
                wanted_output = min(wanted_output, self._limit - overhead - MIN_OWN_TOKENS)
                target = min(target, self._limit - wanted_output)
            fitted = fit_text(target, overhead, self._random, count)
            user: Message = {"role": "user", "content": fitted.text}
            is_chat, has_turns = self._chat.endpoint == "chat", self._chat.turns > 1
            index = len(self.requests)
            request = RequestSpec(
                index=index,
                messages=(*history, user) if is_chat else None,
                prompt=None if is_chat else self._prefix(system) + fitted.text,
                prompt_tokens=fitted.tokens,
                output_tokens=wanted_output,
                sampling=Sampling(self._chat.temperature, seed=None if self._chat.temperature == 0 else index),
                conversation=conversation if has_turns else None,
                turn=turn if has_turns else None,
                after=None if previous is None else previous.index,
                think_s=0.0 if previous is None else self._chat.think_s,
                shared_tokens=min(overhead, fitted.tokens),
                exact=fitted.tokens == target and not isinstance(self._counter, WordCounter),
            )
            self.requests.append(request)
            previous = request
            answer: Message = {"role": "assistant", "content": self._words(wanted_output)}
            history += [user, answer]

    def _overhead(self, count: Render, system: str | None, turn: int) -> int:
        """Tokens of everything around the user's next words."""
        if turn:
            return count(WORDS[0]) - 1
        if system not in self._first_overheads:
            self._first_overheads[system] = count(WORDS[0]) - 1
        return self._first_overheads[system]

    def _render(self, history: tuple[Message, ...], system: str | None) -> Render:
        """Counts the prompt that ends with a text as the user's message."""
        if self._chat.endpoint == "completions":
            return lambda text: self._counter.count_prompt(self._prefix(system) + text)
        return lambda text: self._counter.count_messages([*history, {"role": "user", "content": text}])

    def _words(self, count: int) -> str:
        return " ".join(self._random.choices(WORDS, k=count))

    @staticmethod
    def _prefix(system: str | None) -> str:
        return "" if system is None else f"{system}\n\n"


def check_endpoint(workload: str, endpoint: str) -> None:
    """Raise :class:`WorkloadError` unless ``endpoint`` is one that the client can drive."""
    if endpoint not in ("chat", "completions"):
        raise WorkloadError(f"workload {workload}: endpoint must be chat or completions, not {endpoint!r}")
