"""/v1/chat/completions, mostly through the official client."""

from __future__ import annotations

from typing import Any

import hash_model
import openai
import pytest

HELLO = [{"role": "user", "content": "hello"}]


def greedy(server: Any, prompt: str, count: int) -> str:
    history = list(prompt.encode())
    for _ in range(count):
        history.append(int(server.next_logits(history).argmax()))
    return bytes(t for t in history[len(prompt.encode()) :] if t != hash_model.EOS).decode()


def test_answer_of_the_rendered_prompt(server: Any) -> None:
    answer = server.client.chat.completions.create(
        model="hash",
        messages=[{"role": "system", "content": "be brief"}, *HELLO],  # type: ignore[list-item]
        temperature=0,
        max_completion_tokens=10,
        extra_body={"ignore_eos": True},
    )
    prompt = "system: be brief\nuser: hello\nassistant:"
    (choice,) = answer.choices
    assert answer.object == "chat.completion"
    assert choice.message.role == "assistant"
    assert choice.message.content == greedy(server, prompt, 10)
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == 10


def test_stream_with_logprobs_and_bytes(server: Any) -> None:
    arguments: dict[str, Any] = {
        "model": "hash",
        "messages": HELLO,
        "temperature": 0.8,
        "seed": 11,
        "max_tokens": 12,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 3,
    }
    whole = server.client.chat.completions.create(**arguments)
    chunks = list(
        server.client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    for choice in whole.choices:
        mine = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert mine[0].delta.role == "assistant"
        assert all(c.delta.role is None for c in mine[1:])
        assert "".join(c.delta.content or "" for c in mine) == choice.message.content
        streamed = [entry for c in mine for entry in c.logprobs.content]
        assert streamed == choice.logprobs.content
        for entry in choice.logprobs.content:
            assert len(entry.top_logprobs) == 3
            assert bytes(entry.bytes).decode(errors="replace") == entry.token
            assert entry.logprob <= max(top.logprob for top in entry.top_logprobs) + 1e-6


def test_without_max_tokens_the_context_is_the_limit(start_server: Any) -> None:
    server = start_server(max_model_len=60)
    answer = server.client.chat.completions.create(
        model="hash", messages=HELLO, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.usage is not None
    assert answer.usage.total_tokens == 60
    assert answer.choices[0].finish_reason == "length"


def test_content_parts_and_tools_that_are_not_forced(server: Any) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    arguments: dict[str, Any] = {"model": "hash", "temperature": 0, "max_tokens": 6}
    one = server.client.chat.completions.create(messages=[{"role": "user", "content": parts}], tools=tools, **arguments)
    two = server.client.chat.completions.create(messages=HELLO, **arguments)
    assert one.choices[0].message.content == two.choices[0].message.content


def test_token_ids_on_request(server: Any) -> None:
    body = {"messages": HELLO, "max_tokens": 4, "temperature": 0, "return_token_ids": True, "ignore_eos": True}
    _, whole, _ = server.call("/v1/chat/completions", body)
    assert bytes(whole["prompt_token_ids"]).decode() == "user: hello\nassistant:"
    assert len(whole["choices"][0]["token_ids"]) == 4
    events = server.events("/v1/chat/completions", body)[:-1]
    assert events[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    assert [e["choices"][0]["token_ids"] for e in events] == [[t] for t in whole["choices"][0]["token_ids"]]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"content": "no role"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ],
)
def test_refusals(server: Any, change: dict[str, Any], param: str) -> None:
    status, answer, _ = server.call("/v1/chat/completions", {"messages": HELLO, **change})
    assert status == 400
    assert answer["error"]["param"] == param


def test_missing_template_is_one_sentence(start_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from reference_engine.models.errors import ChatTemplateMissing

    def refuse(*_: Any, **__: Any) -> str:
        raise ChatTemplateMissing("this model has no chat template")

    monkeypatch.setattr(hash_model.ByteTokenizer, "render_chat", refuse)
    server = start_server()
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        server.client.chat.completions.create(model="hash", messages=HELLO)


@pytest.mark.parametrize("name", ["self", "messages"])
def test_template_arguments_cannot_take_the_templates_own_names(server: Any, name: str) -> None:
    body = {"messages": HELLO, "max_tokens": 1, "chat_template_kwargs": {name: 1}}
    status, answer, _ = server.call("/v1/chat/completions", body)
    assert status == 400
    assert answer["error"]["param"] == "chat_template_kwargs"
    assert f"must not set '{name}'" in answer["error"]["message"]
