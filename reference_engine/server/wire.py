"""Answers as bytes: whole JSON documents, and server-sent events whose constant parts are built once per call.

::

    data: {"id":..,"object":..,"created":..,"model":..,"choices":[{"index":0,"text":     head, once a choice
    "the new text"                                                                       per token
    ,"logprobs":null,"finish_reason":null}]}                                             tail, once a call
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import orjson

from reference_engine.detokenizer import TokenTable
from reference_engine.outputs import PromptLogprobs, SequenceOutput, TokenLogprob
from reference_engine.request import FinishReason
from reference_engine.server.calls import Call
from reference_engine.server.scores import chat_logprobs, legacy_logprobs, prompt_logprobs, text_and_offsets
from reference_engine.server.tool_calls import CallReader

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class _Choice:
    """What a whole (not streamed) answer collects of one choice."""

    text: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    prompt_logprobs: PromptLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    beam_score: float | None = None


@dataclass(slots=True)
class _Count:
    """Tokens of one prompt and its continuations."""

    prompt: int = 0
    cached: int = 0
    generated: dict[int, int] = field(default_factory=dict)


class Wire:
    """Renders one call's answer: feed it outputs through ``chunk`` (streaming), or ``absorb`` and then ``document``."""

    def __init__(
        self, call: Call, prompts: list[tuple[int, ...]], *, model: str, fingerprint: str, tokens: TokenTable
    ) -> None:
        """``prompts``: the token ids of each of the call's prompts."""
        self.call = call
        self.id = f"{'chatcmpl' if call.is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._prompts = prompts
        self._tokens = tokens
        self._numbers = {self.request_id(number): number for number in range(len(prompts))}
        self._echoed: dict[int, tuple[str, list[int]]] = {}
        self._choices: dict[int, _Choice] = {}
        self._counts = [_Count() for _ in prompts]
        self._heads: dict[int, bytes] = {}
        self._tools = () if call.form is None else call.form.tools
        self._readers: dict[int, CallReader] = {}
        self._common: dict[str, Any] = {
            "id": self.id,
            "object": "chat.completion" if call.is_chat else "text_completion",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        event = {**self._common, "object": "chat.completion.chunk"} if call.is_chat else self._common
        self._prelude = b"data: " + orjson.dumps(event)[:-1] + b',"choices":['
        self._end = b',"usage":null}\n\n' if call.include_usage else b"}\n\n"
        # A token without text is nothing to tell.
        self._tells_text_only = call.params.logprobs is None and not call.return_token_ids and not call.continuous_usage
        # Nothing but text varies: the usual case, where a token costs one join.
        self._is_plain = self._tells_text_only and not self._tools
        self._tail = (b"}" if call.is_chat else b"") + b',"logprobs":null,"finish_reason":null}]' + self._end

    def request_id(self, number: int) -> str:
        """The engine's request id of prompt ``number``."""
        return f"{self.id}-{number}"

    # --- streaming ---

    def chunk(self, output: SequenceOutput) -> bytes:
        """The event for one token; empty if there is nothing to tell yet."""
        number = self._numbers[output.request_id]
        index = number * self.call.params.n + output.index
        self._count(number, output)
        head = self._heads.get(index)
        if self._is_plain and output.finish_reason is None:
            if head is not None:
                return b"".join((head, orjson.dumps(output.text), self._tail)) if output.text else b""
            if not output.text and not self.call.echo and not self.call.wants_prompt_logprobs:
                return b""
        if head is None:
            opening = b'"delta":{"content":' if self.call.is_chat else b'"text":'
            self._heads[index] = self._prelude + b'{"index":%d,' % index + opening
        return self._full_chunk(index, number, output, is_first=head is None)

    def closing(self) -> bytes:
        """The end of the stream: usage if asked for, then the mark that it is complete."""
        if not self.call.include_usage:
            return DONE
        return self._prelude + b'],"usage":' + orjson.dumps(self.usage()) + b"}\n\n" + DONE

    def _full_chunk(self, index: int, number: int, output: SequenceOutput, *, is_first: bool) -> bytes:
        call = self.call
        text = "" if call.prompt_only else output.text
        entries = [] if call.prompt_only or output.logprob is None else [output.logprob]
        choice: dict[str, Any] = {"index": index}
        if self._tools:
            choice["delta"] = self._call_delta(index, output, is_first=is_first)
            if not choice["delta"] and output.finish_reason is None and self._tells_text_only:
                return b""
        elif call.is_chat:
            choice["delta"] = {"role": "assistant", "content": text} if is_first else {"content": text}
        else:
            choice["text"] = self._echo(number)[0] + text if is_first and call.echo else text
        scores = output.prompt_logprobs or () if is_first and call.echo else ()
        choice["logprobs"] = self._logprobs(number, scores, entries, [output.text_offset])
        choice["finish_reason"] = self._finish_reason(output)
        if output.finish_reason is not None:
            choice["stop_reason"] = None if call.prompt_only else output.stop_reason
        if output.beam_score is not None:
            choice["beam_score"] = output.beam_score
        if call.return_token_ids:
            choice["token_ids"] = [] if call.prompt_only else [output.token]
        if is_first and call.wants_prompt_logprobs and output.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs, self._tokens)
        end = self._end
        if is_first and call.return_token_ids:
            if call.is_chat:
                end = b',"prompt_token_ids":' + orjson.dumps(self._prompts[number]) + end
            else:
                choice["prompt_token_ids"] = self._prompts[number]
        if call.continuous_usage:
            end = end.replace(b'"usage":null', b'"usage":' + orjson.dumps(self.usage()))
        return self._prelude + orjson.dumps(choice) + b"]" + end

    def _call_delta(self, index: int, output: SequenceOutput, *, is_first: bool) -> dict[str, Any]:
        reader = self._readers.get(index)
        if reader is None:
            reader = self._readers[index] = CallReader(self._tools)
        reason = self._finish_reason(output)
        calls = reader.push(output.text, is_last=reason is not None, is_complete=reason == "tool_calls")
        delta: dict[str, Any] = {"role": "assistant", "content": None} if is_first else {}
        return {**delta, "tool_calls": calls} if calls else delta

    # --- whole answers ---

    def absorb(self, output: SequenceOutput) -> None:
        """Keep one token for ``document``."""
        number = self._numbers[output.request_id]
        self._count(number, output)
        choice = self._choices.setdefault(number * self.call.params.n + output.index, _Choice())
        if output.prompt_logprobs is not None:
            choice.prompt_logprobs = output.prompt_logprobs
        choice.finish_reason = self._finish_reason(output)
        choice.beam_score = output.beam_score
        if self.call.prompt_only or output.token is None:
            return
        choice.stop_reason = output.stop_reason
        choice.text.append(output.text)
        choice.tokens.append(output.token)
        if output.logprob is not None:
            choice.logprobs.append(output.logprob)
            choice.offsets.append(output.text_offset)

    def document(self) -> bytes:
        """The whole answer."""
        choices = [self._whole_choice(index, choice) for index, choice in sorted(self._choices.items())]
        document = {**self._common, "choices": choices, "usage": self.usage()}
        if self.call.is_chat and self.call.return_token_ids:
            document["prompt_token_ids"] = self._prompts[0]
        return orjson.dumps(document)

    def _whole_choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        call, number = self.call, index // self.call.params.n
        text = "".join(choice.text)
        answer: dict[str, Any] = {"index": index}
        if self._tools:
            answer["message"] = {"role": "assistant", "content": None, "refusal": None}
            calls = CallReader(self._tools).whole(text, is_complete=choice.finish_reason == "tool_calls")
            if calls:
                answer["message"]["tool_calls"] = calls
        elif call.is_chat:
            answer["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            answer["text"] = self._echo(number)[0] + text if call.echo else text
        scores = choice.prompt_logprobs or () if call.echo else ()
        answer["logprobs"] = self._logprobs(number, scores, choice.logprobs, choice.offsets)
        answer["finish_reason"] = choice.finish_reason
        answer["stop_reason"] = choice.stop_reason
        if choice.beam_score is not None:
            answer["beam_score"] = choice.beam_score
        if call.return_token_ids:
            answer["token_ids"] = choice.tokens
            if not call.is_chat:
                answer["prompt_token_ids"] = self._prompts[number]
        if call.wants_prompt_logprobs and choice.prompt_logprobs is not None:
            answer["prompt_logprobs"] = prompt_logprobs(choice.prompt_logprobs, self._tokens)
        return answer

    # --- shared parts ---

    def usage(self) -> dict[str, Any]:
        """Tokens so far, over all prompts and choices.  A prompt counts once, however many continuations it has."""
        prompt = sum(count.prompt for count in self._counts)
        generated = sum(sum(count.generated.values()) for count in self._counts)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": sum(count.cached for count in self._counts)},
        }

    def _count(self, number: int, output: SequenceOutput) -> None:
        count = self._counts[number]
        count.prompt, count.cached = output.prompt_tokens, output.cached_tokens
        count.generated[output.index] = 0 if self.call.prompt_only else output.num_generated

    def _finish_reason(self, output: SequenceOutput) -> str | None:
        if output.finish_reason is None:
            return None
        if self._tools and output.finish_reason is FinishReason.STOP and output.stop_reason is None:
            return "tool_calls"
        return "length" if self.call.prompt_only else output.finish_reason.value

    def _echo(self, number: int) -> tuple[str, list[int]]:
        """A prompt's text as it is echoed, and where its tokens begin."""
        if number not in self._echoed:
            prompt = self.call.prompts[number]
            show = isinstance(prompt, str) or self.call.show_special_tokens
            text, offsets = text_and_offsets(self._prompts[number], self._tokens, show_special=show)
            if isinstance(prompt, str) and text != prompt and text.endswith(prompt):
                # The tokenizer put special tokens before the text; they are no part of what is echoed.
                offsets = [max(offset - (len(text) - len(prompt)), 0) for offset in offsets]
            self._echoed[number] = (prompt if isinstance(prompt, str) else text, offsets)
        return self._echoed[number]

    def _logprobs(
        self, number: int, scores: PromptLogprobs, entries: list[TokenLogprob], offsets: list[int]
    ) -> dict[str, Any] | None:
        """``scores``: the prompt's, where they are echoed.  ``offsets``: of ``entries``, in the continuation."""
        count = self.call.params.logprobs
        if count is None:
            return None
        if self.call.is_chat:
            return chat_logprobs(entries, self._tokens)
        shift = len(self._echo(number)[0]) if self.call.echo else 0
        places = [offset + shift for offset in offsets[: len(entries)]]
        if scores:
            places = self._echo(number)[1] + places
        tokens = [*self._prompts[number][: len(scores)], *(entry.token for entry in entries)]
        return legacy_logprobs(tokens, [*scores, *entries], places, count, self._tokens)
