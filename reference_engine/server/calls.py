"""API calls, parsed and checked: what /v1/completions and /v1/chat/completions mean to the engine.

Fields that this engine does not know are ignored, as OpenAI's servers ignore them.  Fields that it knows but cannot
honour (``best_of`` other than n, a JSON schema with unknown keywords) are refused: an answer that silently lacks them
misleads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reference_engine.request import SamplingParams
from reference_engine.server.errors import ApiError
from reference_engine.server.fields import INT64, Fields, wrong
from reference_engine.server.forms import Form, chat_form, completion_form

MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_PROMPTS = 2048
DEFAULT_COMPLETION_TOKENS = 16

Prompt = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """One call.  ``params.max_tokens`` 0: the call leaves the length open (chat), and the context is the limit."""

    prompts: tuple[Prompt, ...]
    params: SamplingParams
    is_chat: bool = False
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    echo: bool = False
    prompt_only: bool = False  # echo with max_tokens 0: the token that the engine draws is not returned
    return_token_ids: bool = False
    show_special_tokens: bool = False
    add_special_tokens: bool = True
    priority: int = 0
    cache_salt: str = ""
    wants_prompt_logprobs: bool = False  # the extra field, not echo
    form: Form | None = None  # what the answer is held to

    @property
    def num_choices(self) -> int:
        return len(self.prompts) * self.params.n


def parse_completion(body: Mapping[str, Any]) -> Call:
    """A /v1/completions body.  Raises ApiError."""
    fields = Fields(body)
    n = _choices(fields)
    if fields.string("suffix"):
        raise wrong("suffix", "is not supported; leave it out")
    echo = fields.boolean("echo")
    max_tokens = fields.integer("max_tokens", DEFAULT_COMPLETION_TOKENS, low=0 if echo else 1)
    logprobs = fields.integer("logprobs", low=0, high=MAX_LOGPROBS)
    asked = fields.integer("prompt_logprobs", low=0, high=MAX_LOGPROBS)
    prompt_logprobs = max(asked or 0, logprobs or 0) if echo and logprobs is not None else asked
    return Call(
        prompts=_prompts(fields.get("prompt")),
        params=_sampling(fields, n, max_tokens or 1, logprobs, prompt_logprobs),
        echo=echo,
        prompt_only=max_tokens == 0,
        add_special_tokens=fields.boolean("add_special_tokens", True),
        wants_prompt_logprobs=asked is not None,
        form=completion_form(fields),
        **_delivery(fields),
    )


def parse_chat(body: Mapping[str, Any], render: Any) -> Call:
    """A /v1/chat/completions body; ``render(messages, **template arguments)`` gives the prompt.  Raises ApiError."""
    fields = Fields(body)
    form = chat_form(fields)
    logprobs: int | None = fields.integer("top_logprobs", low=0, high=MAX_LOGPROBS)
    if fields.boolean("logprobs"):
        logprobs = logprobs or 0
    elif logprobs is not None:
        raise wrong("top_logprobs", "needs logprobs: true")
    name = "max_tokens" if fields.get("max_completion_tokens") is None else "max_completion_tokens"
    max_tokens = fields.integer(name, 0, low=1)
    asked = fields.integer("prompt_logprobs", low=0, high=MAX_LOGPROBS)
    extra = fields.object("chat_template_kwargs") or {}
    for taken in ("self", "messages"):
        if taken in extra:
            raise wrong("chat_template_kwargs", f"must not set {taken!r}, which is the template's own")
    if form is not None and form.tools:
        extra = {"tools": fields.get("tools"), **extra}
    prompt = render(
        parse_messages(fields.get("messages")),
        **{**extra, "add_generation_prompt": fields.boolean("add_generation_prompt", True)},
    )
    return Call(
        prompts=(prompt,),
        params=_sampling(fields, _choices(fields), max_tokens or 0, logprobs, asked),
        is_chat=True,
        add_special_tokens=fields.boolean("add_special_tokens", False),
        wants_prompt_logprobs=asked is not None,
        form=form,
        **_delivery(fields),
    )


def parse_messages(value: Any) -> list[dict[str, Any]]:
    """Chat messages with their content as plain text.  Raises ApiError."""
    if type(value) is not list:
        raise wrong("messages", "must be a list of messages")
    if not value:
        raise wrong("messages", "must hold at least one message")
    messages = []
    for number, message in enumerate(value):
        if type(message) is not dict or type(message.get("role")) is not str:
            raise wrong("messages", f"message {number} must be an object with a role")
        messages.append({**message, "content": _content(message.get("content"), number)})
    return messages


def _content(value: Any, number: int) -> str:
    if value is None:
        return ""
    if type(value) is str:
        return value
    texts = []
    for part in value if type(value) is list else [value]:
        if type(part) is str:
            texts.append(part)
        elif type(part) is dict and part.get("type") in ("text", "input_text") and type(part.get("text")) is str:
            texts.append(part["text"])
        else:
            raise wrong("messages", f"message {number} has content that is not text; this engine reads text only")
    return "".join(texts)


def _prompts(value: Any) -> tuple[Prompt, ...]:
    if value is None:
        raise wrong("prompt", "is missing; send a string, a list of token ids, or a list of either")
    if type(value) is str:
        return (_nonempty(value),)
    if type(value) is not list:
        raise wrong("prompt", "must be a string, a list of token ids, or a list of either")
    if value and all(type(item) is int for item in value):
        return (tuple(value),)
    if not value:
        raise wrong("prompt", "is empty; send at least one token")
    if len(value) > MAX_PROMPTS:
        raise wrong("prompt", f"holds {len(value)} prompts; at most {MAX_PROMPTS} are possible in one call")
    return tuple(_one_prompt(item) for item in value)


def _one_prompt(item: Any) -> Prompt:
    if type(item) is str:
        return _nonempty(item)
    if type(item) is list and item and all(type(token) is int for token in item):
        return tuple(item)
    raise wrong("prompt", "must be a string, a list of token ids, or a list of either, none of them empty")


def _nonempty(text: str) -> str:
    if not text:
        raise wrong("prompt", "is empty; send at least one character")
    return text


def _choices(fields: Fields) -> int:
    return fields.integer("n", 1, low=1, high=MAX_CHOICES) or 1


def _delivery(fields: Fields) -> dict[str, Any]:
    """How the answer is sent, and where the request stands in the queue and the prefix cache."""
    stream = fields.boolean("stream")
    options = fields.object("stream_options")
    if options is not None and not stream:
        raise wrong("stream_options", "needs stream: true")
    chosen = Fields(options or {})
    continuous = chosen.boolean("continuous_usage_stats")
    return {
        "stream": stream,
        "include_usage": chosen.boolean("include_usage") or continuous,
        "continuous_usage": continuous,
        "return_token_ids": fields.boolean("return_token_ids"),
        "show_special_tokens": not fields.boolean("skip_special_tokens", True),
        "priority": fields.integer("priority", 0, low=INT64[0]),
        "cache_salt": fields.string("cache_salt") or "",
    }


def _sampling(
    fields: Fields, n: int, max_tokens: int, logprobs: int | None, prompt_logprobs: int | None
) -> SamplingParams:
    beam = _beam(fields, n)
    top_k = fields.integer("top_k", 0, low=-1) or 0
    min_tokens = fields.integer("min_tokens", 0, low=0) or 0
    if max_tokens and min_tokens > max_tokens:
        raise wrong("min_tokens", f"is {min_tokens}, more than max_tokens {max_tokens}")
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=fields.number("temperature", 1.0, low=0.0, high=2.0),
        top_k=max(top_k, 0),
        top_p=fields.number("top_p", 1.0, low=0.0, high=1.0, above=True),
        min_p=fields.number("min_p", 0.0, low=0.0, high=1.0),
        repetition_penalty=fields.number("repetition_penalty", 1.0, low=0.0, high=10.0, above=True),
        presence_penalty=fields.number("presence_penalty", 0.0, low=-2.0, high=2.0),
        frequency_penalty=fields.number("frequency_penalty", 0.0, low=-2.0, high=2.0),
        logit_bias=_logit_bias(fields),
        stop=fields.strings("stop", most=MAX_STOPS),
        include_stop_str=fields.boolean("include_stop_str_in_output"),
        stop_token_ids=fields.integers("stop_token_ids"),
        ignore_eos=fields.boolean("ignore_eos"),
        n=n,
        seed=fields.integer("seed", low=INT64[0]),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        **beam,
    )


def _beam(fields: Fields, n: int) -> dict[str, Any]:
    """``use_beam_search`` with ``best_of`` as its width (default n), ``length_penalty`` and ``early_stopping``.

    Beams are compared by the model's own log-probabilities, so what would change those is refused.
    """
    best_of = fields.integer("best_of", n, low=1, high=MAX_CHOICES) or n
    if not fields.boolean("use_beam_search"):
        if best_of != n:
            raise wrong(
                "best_of",
                f"is {best_of} but n is {n}; this engine returns every continuation, so leave best_of out "
                "(with use_beam_search it is the width of the beam)",
            )
        return {}
    if best_of < n:
        raise wrong("best_of", f"is {best_of}, less than n {n}; it is the width of the beam")
    for name, neutral in _NEUTRAL_FOR_BEAMS.items():
        if fields.get(name) not in (None, *neutral):
            raise wrong(name, "does not go with use_beam_search; leave it out")
    early: bool | str = "never"
    if fields.get("early_stopping") != "never":
        early = fields.boolean("early_stopping")
    penalty = fields.number("length_penalty", 1.0, low=-10.0, high=10.0)
    return {"beam_width": best_of, "length_penalty": penalty, "early_stopping": early}


# What each of these may be in a call with use_beam_search.
_NEUTRAL_FOR_BEAMS: dict[str, tuple[Any, ...]] = {
    "temperature": (0, 1),
    "top_k": (0, -1),
    "top_p": (1,),
    "min_p": (0,),
    "repetition_penalty": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "stop": ("", []),
}


def _logit_bias(fields: Fields) -> tuple[tuple[int, float], ...]:
    entries = fields.object("logit_bias") or {}
    found: dict[int, float] = {}
    for key, value in entries.items():
        if not (key.isascii() and key.isdigit()) or type(value) not in (int, float) or not -100 <= value <= 100:
            raise wrong("logit_bias", f"must map token ids to numbers from -100 to 100; {key!r}: {value!r} does not")
        found[int(key)] = float(value)
    return tuple(found.items())


def check_model(body: Mapping[str, Any], served: str) -> None:
    """A call may leave the model out, but not name another one."""
    model = Fields(body).string("model")
    if model is not None and model != served:
        raise ApiError(
            f"the model {model!r} is not served here; this server has {served!r}",
            status=404,
            param="model",
            code="model_not_found",
        )
