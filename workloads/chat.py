"""``chat``: conversations with ShareGPT-like lengths, optional turns, and system prompts shared by popularity.

::

    conversation:  [system k] user 0 -> answer 0 -> user 1 -> answer 1 -> ...
    prompt of turn t = everything before answer t;  system k is drawn by a Zipf law, the same for all turns

The answers inside later prompts are the engine's own (``history=real``); the schedule holds words of the planned length
in their place.  ``history=planned`` sends those words, so that every engine is sent the same bytes.  With ``file``, a
ShareGPT JSON file, questions and the lengths of answers are those of real conversations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import ClassVar, Literal

from workloads.lengths import (
    SHAREGPT_INPUT_CV,
    SHAREGPT_INPUT_MEAN,
    SHAREGPT_OUTPUT_CV,
    SHAREGPT_OUTPUT_MEAN,
    LengthLaw,
    Shape,
)
from workloads.request import Load, Message, RequestSpec, Sampling, WorkloadError
from workloads.sharegpt import Exchange, read_sharegpt
from workloads.tokens import MIN_OWN_TOKENS, WORDS, Fitted, Render, TokenCounter, WordCounter, fit_text
from workloads.workload import Endpoint

MAX_SKIPPED = 1000  # conversations of a file that do not fit, in a row, before it is an error


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
    history: Literal["real", "planned"] = "real"  # what later turns carry as the earlier answers
    file: str = ""  # ShareGPT JSON; lengths then come from it, and turns is the most that is taken of a conversation
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
        if self.history not in ("real", "planned"):
            raise WorkloadError(f"workload chat: history must be real or planned, not {self.history!r}")
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
        scripts = _Scripts(read_sharegpt(Path(self.file).expanduser()), random) if self.file else None
        conversation = 0
        while len(builder.requests) < count:
            system = random.choices(systems, weights)[0] if systems else None
            script = None if scripts is None else scripts.next()
            builder.converse(conversation, system, min(self.turns, count - len(builder.requests)), script)
            conversation += 1
        return tuple(builder.requests)

    def _laws(self) -> tuple[LengthLaw, LengthLaw]:
        return (
            LengthLaw(self.input_mean * self.scale, self.input_cv, self.shape),
            LengthLaw(self.output_mean * self.scale, self.output_cv, self.shape),
        )


class _Scripts:
    """Conversations of a file in a seeded order, again from the start when all were used."""

    def __init__(self, conversations: list[list[Exchange]], random: Random) -> None:
        self._all = conversations
        self._random = random
        self._left: list[list[Exchange]] = []

    def next(self) -> list[Exchange]:
        if not self._left:
            self._left = self._random.sample(self._all, len(self._all))
        return self._left.pop()


class _Builder:
    """Appends conversations to ``requests``."""

    def __init__(self, chat: Chat, random: Random, counter: TokenCounter, limit: int | None) -> None:
        self.requests: list[RequestSpec] = []
        self._chat = chat
        self._inputs, self._outputs = chat._laws()
        self._random = random
        self._counter = counter
        self._limit = limit
        self._skipped = 0
        self._first_overheads: dict[str | None, int] = {}  # by system prompt, before the first turn

    def converse(
        self, conversation: int, system: str | None, turns: int, script: Sequence[Exchange] | None = None
    ) -> None:
        """Append one conversation.  It ends early when the next turn would not fit the model, or the script ends."""
        history: list[Message] = []
        if system is not None and self._chat.endpoint == "chat":
            history.append({"role": "system", "content": system})
        previous: RequestSpec | None = None
        answers: list[tuple[int, int]] = []
        if script is not None:
            turns = min(turns, len(script))
        for turn in range(turns):
            wanted_input = max(MIN_OWN_TOKENS, self._inputs.draw(self._random))
            wanted_output = self._outputs.draw(self._random)
            if script is not None:
                wanted_output = max(1, self._counter.count_prompt(script[turn][1]))
            count = self._render(tuple(history), system)
            overhead = self._overhead(count, system, turn)
            if self._limit is not None and self._limit - overhead - self._slack(previous) <= MIN_OWN_TOKENS:
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
                room = self._limit - self._slack(previous)
                wanted_output = min(wanted_output, room - overhead - MIN_OWN_TOKENS)
                target = min(target, room - wanted_output)
            if script is None:
                fitted = fit_text(target, overhead, self._random, count)
            else:
                fitted = Fitted(script[turn][0], count(script[turn][0]))
                target = fitted.tokens
                if self._limit is not None and fitted.tokens + wanted_output > room:
                    self._skip(turn)
                    return
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
                exact=fitted.tokens == target and not answers and not isinstance(self._counter, WordCounter),
                answers=tuple(answers),
            )
            self.requests.append(request)
            self._skipped = 0
            previous = request
            words = self._words(wanted_output) if script is None else script[turn][1]
            answer: Message = {"role": "assistant", "content": words}
            history += [user, answer]
            if self._chat.history == "real":
                answers.append((len(history) - 1, request.index))

    def _slack(self, previous: RequestSpec | None) -> int:
        """Tokens kept free because a real answer may come to more tokens in a prompt than it had when generated."""
        if previous is None or self._chat.history == "planned":
            return 0
        return 8 + previous.output_tokens // 8

    def _skip(self, turn: int) -> None:
        """Note a conversation of the file that does not fit.  Raises when none seems to."""
        if turn == 0:
            self._skipped += 1
            if self._skipped > MAX_SKIPPED:
                raise WorkloadError(
                    f"workload chat: {MAX_SKIPPED} conversations of the file in a row do not fit max_model_len "
                    f"{self._limit}; raise the engine's max_model_len"
                )

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
