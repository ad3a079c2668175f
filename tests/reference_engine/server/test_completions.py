"""/v1/completions, through raw HTTP and the official client."""

from __future__ import annotations

import json
import random
import secrets
from typing import Any

import hash_model
import numpy as np
import pytest

EOS = hash_model.EOS


def greedy_text(server: Any, prompt: bytes, count: int) -> str:
    history = list(prompt)
    for _ in range(count):
        history.append(int(server.next_logits(history).argmax()))
    return bytes(token for token in history[len(prompt) :] if token != EOS).decode()


def ids(text: str) -> list[int]:
    return list(text.encode())


@pytest.fixture
def rng() -> random.Random:
    seed = secrets.randbits(32)
    print("seed", seed)
    return random.Random(seed)


def test_text_prompt_and_its_usage(server: Any) -> None:
    answer = server.complete("hello there", max_tokens=9, ignore_eos=True, add_special_tokens=False)
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["model"] == "hash"
    assert answer["system_fingerprint"] == "fp_test"
    (choice,) = answer["choices"]
    assert choice["text"] == greedy_text(server, b"hello there", 9)
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"] is None
    assert answer["usage"] == {
        "prompt_tokens": 11,
        "completion_tokens": 9,
        "total_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_prompt_as_ids_equals_text_and_hits_the_cache(server: Any) -> None:
    prompt = f"a prompt that nobody sent before {secrets.token_hex(4)}"
    first = server.complete(prompt, max_tokens=6, ignore_eos=True, add_special_tokens=False)
    second = server.complete(ids(prompt), max_tokens=6, ignore_eos=True, return_token_ids=True)
    assert second["choices"][0]["text"] == first["choices"][0]["text"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == (len(prompt) - 1) // 4 * 4
    assert second["choices"][0]["prompt_token_ids"] == ids(prompt)
    assert len(second["choices"][0]["token_ids"]) == 6
    salted = server.complete(ids(prompt), max_tokens=2, cache_salt="mine")
    assert salted["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


@pytest.mark.parametrize("as_ids", [False, True])
def test_batched_prompts_keep_their_order(server: Any, as_ids: bool) -> None:
    texts = ["first", "the second one", "3rd"]
    prompt = [ids(text) for text in texts] if as_ids else texts
    answer = server.complete(prompt, max_tokens=5, n=2, ignore_eos=True, add_special_tokens=False)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    for choice in answer["choices"]:
        assert choice["text"] == greedy_text(server, texts[choice["index"] // 2].encode(), 5)
    assert answer["usage"]["prompt_tokens"] == sum(map(len, texts))
    assert answer["usage"]["completion_tokens"] == 30


def test_a_stream_says_what_the_whole_answer_says(server: Any, rng: random.Random) -> None:
    for _ in range(15):
        body: dict[str, Any] = {
            "prompt": ids("".join(rng.choices("abc xyz", k=rng.randint(1, 30)))),
            "max_tokens": rng.randint(1, 25),
            "seed": rng.getrandbits(62),
            "temperature": rng.choice([0.0, 0.7, 1.3]),
            "n": rng.choice([1, 1, 3]),
            "stop": rng.choice([None, "e", ["a", "t!"]]),
            "logprobs": rng.choice([None, None, 0, 2]),
            "echo": rng.random() < 0.3,
            "return_token_ids": rng.random() < 0.3,
            "cache_salt": secrets.token_hex(4),  # so that cached_tokens agree
        }
        if rng.random() < 0.5:
            body["stream_options"] = {"include_usage": True}
        options = body.pop("stream_options", None)
        _, whole, _ = server.call("/v1/completions", body)
        body["cache_salt"] = secrets.token_hex(4)
        events = server.events("/v1/completions", {**body, "stream_options": options})
        assert events[-1] == "[DONE]"
        usage = events[-2]["usage"] if options else None
        chunks = events[:-2] if options else events[:-1]
        if options:
            assert events[-2]["choices"] == []
            assert usage == whole["usage"]
            assert all(chunk["usage"] is None for chunk in chunks)
        else:
            assert all("usage" not in chunk for chunk in chunks)
        for choice in whole["choices"]:
            mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
            assert "".join(c["text"] for c in mine) == choice["text"]
            assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]]
            assert mine[-1]["stop_reason"] == choice["stop_reason"]
            if body["logprobs"] is not None:
                for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                    assert [x for c in mine for x in c["logprobs"][key]] == choice["logprobs"][key]
            if body["return_token_ids"]:
                assert [x for c in mine for x in c["token_ids"]] == choice["token_ids"]
                assert mine[0]["prompt_token_ids"] == choice["prompt_token_ids"] == body["prompt"]


def test_continuous_usage_counts_up(server: Any) -> None:
    body = {"prompt": "count", "max_tokens": 7, "temperature": 0, "ignore_eos": True}
    events = server.events("/v1/completions", {**body, "stream_options": {"continuous_usage_stats": True}})
    counts = [event["usage"]["completion_tokens"] for event in events[:-1] if event["choices"]]
    assert counts == list(range(1, 8))
    assert events[-2]["usage"]["completion_tokens"] == 7


def test_events_carry_text_unless_something_else_was_asked_for(server: Any) -> None:
    text = greedy_text(server, b"hello", 20)
    body = {"prompt": ids("hello"), "max_tokens": 20, "temperature": 0, "ignore_eos": True, "stop": text[6:12] + "#"}
    events = server.events("/v1/completions", body)[:-1]
    assert all(event["choices"][0]["text"] or event["choices"][0]["finish_reason"] for event in events)
    with_ids = server.events("/v1/completions", {**body, "return_token_ids": True})[:-1]
    assert len(with_ids) == 20
    assert "".join(event["choices"][0]["text"] for event in events) == text


def test_echo_with_logprobs_scores_the_prompt(server: Any) -> None:
    answer = server.complete(ids("abcdef"), max_tokens=3, echo=True, logprobs=1, ignore_eos=True)
    (choice,) = answer["choices"]
    scores = choice["logprobs"]
    assert choice["text"] == "abcdef" + greedy_text(server, b"abcdef", 3)
    assert "".join(scores["tokens"]) == choice["text"]
    assert scores["text_offset"] == list(range(9))
    assert scores["token_logprobs"][0] is None
    assert scores["top_logprobs"][0] is None
    for position in range(1, 6):
        logits = server.next_logits(ids("abcdef"[:position])).astype(np.float64)
        exact = logits - np.log(np.exp(logits).sum())
        assert scores["token_logprobs"][position] == pytest.approx(exact[ord("abcdef"[position])], abs=1e-4)
        assert max(scores["top_logprobs"][position].values()) == pytest.approx(exact.max(), abs=1e-4)
        assert len(scores["top_logprobs"][position]) in (1, 2)  # the best one, and the chosen one if it is another


def test_echo_alone_scores_a_text_without_generating(server: Any) -> None:
    answer = server.complete("score me", max_tokens=0, echo=True, logprobs=0, add_special_tokens=False)
    (choice,) = answer["choices"]
    assert choice["text"] == "score me"
    assert len(choice["logprobs"]["tokens"]) == 8
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0
    events = server.events("/v1/completions", {"prompt": "score me", "max_tokens": 0, "echo": True})
    assert "".join(event["choices"][0]["text"] for event in events[:-1]) == "<bos>score me"[5:]


def test_prompt_logprobs_name_token_rank_and_text(server: Any) -> None:
    (choice,) = server.complete(ids("abc"), max_tokens=1, prompt_logprobs=2)["choices"]
    assert choice["text"] == greedy_text(server, b"abc", 1)
    first, second, third = choice["prompt_logprobs"]
    assert first is None
    assert set(third) >= {str(ord("c"))}
    assert second[str(ord("b"))]["decoded_token"] == "b"
    logits = server.next_logits(ids("a"))
    assert second[str(ord("b"))]["rank"] == int((logits > logits[ord("b")]).sum()) + 1


def test_seed_repeats_and_differs(server: Any) -> None:
    body = {"max_tokens": 12, "temperature": 1.0, "ignore_eos": True}
    one = server.complete("x", seed=5, **body)["choices"][0]["text"]
    assert server.complete("x", seed=5, **body)["choices"][0]["text"] == one
    assert server.complete("x", seed=6, **body)["choices"][0]["text"] != one
    assert server.complete("x", **body)["choices"][0]["text"] != server.complete("x", **body)["choices"][0]["text"]


def test_stop_string_stop_id_and_reason(server: Any) -> None:
    text = greedy_text(server, b"go", 30)
    stop = text[5:8]
    answer = server.complete("go", max_tokens=30, stop=stop, ignore_eos=True, add_special_tokens=False)
    (choice,) = answer["choices"]
    assert choice["text"] == text[: text.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    assert answer["usage"]["completion_tokens"] == text.index(stop) + len(stop)
    token = ord(text[4])
    (choice,) = server.complete(ids("go"), max_tokens=30, stop_token_ids=[token], ignore_eos=True)["choices"]
    assert choice["text"] == text[: text.index(text[4])]
    assert choice["stop_reason"] == token


def test_logit_bias_forces_a_token(server: Any) -> None:
    (choice,) = server.complete("z", max_tokens=4, logit_bias={"81": 100}, ignore_eos=True)["choices"]
    assert choice["text"] == "QQQQ"


def test_unknown_fields_and_content_types_are_ignored(server: Any) -> None:
    body = {"prompt": "a", "max_tokens": 1, "user": "me", "no_such_field": [1], "temperature": None, "n": None}
    for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded"):
        status, _, _ = server.call("/v1/completions", body, headers={"Content-Type": kind})
        assert status == 200


def test_official_client(server: Any) -> None:
    client = server.client
    whole = client.completions.create(
        model="hash", prompt="hi", max_tokens=8, temperature=0.9, seed=3, n=2, logprobs=2, stop=["~~"]
    )
    assert len(whole.choices) == 2
    assert whole.usage is not None
    assert whole.choices[0].logprobs is not None
    tokens = whole.choices[0].logprobs.tokens
    assert tokens is not None
    stream = client.completions.create(
        model="hash",
        prompt="hi",
        max_tokens=8,
        temperature=0.9,
        seed=3,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


def test_curl_streams_events(server: Any, tmp_path: Any) -> None:
    import shutil
    import subprocess

    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    body = json.dumps({"prompt": "hello", "max_tokens": 5, "stream": True, "ignore_eos": True, "temperature": 0})
    done = subprocess.run(
        ["curl", "-sN", f"{server.url}/v1/completions", "-H", "Content-Type: application/json", "-d", body],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    events = [line for line in done.stdout.splitlines() if line]
    assert len(events) == 6
    assert events[-1] == "data: [DONE]"
    assert all(line.startswith("data: ") for line in events)
