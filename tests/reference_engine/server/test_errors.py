"""Every refusal: the right status, an envelope that names the field, and a server that goes on."""

from __future__ import annotations

import http.client
import re
import threading
from typing import Any

import hash_model
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

VOCAB = hash_model.VOCAB


def assert_envelope(answer: Any) -> dict[str, Any]:
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["message"]
    assert "Traceback" not in answer["error"]["message"]
    return answer["error"]


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"prompt": None}, "prompt", "missing"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": []}, "prompt", "empty"),
        ({"prompt": [[]]}, "prompt", "empty"),
        ({"prompt": ["a", ""]}, "prompt", "empty"),
        ({"prompt": 5}, "prompt", "string"),
        ({"prompt": [1, "a"]}, "prompt", "list"),
        ({"prompt": [1, True]}, "prompt", "list"),
        ({"prompt": [1.5]}, "prompt", "list"),
        ({"prompt": ["a"] * 2049}, "prompt", "2049.*2048"),
        ({"prompt": [VOCAB]}, "prompt", f"{VOCAB}.*vocabulary"),
        ({"prompt": [-1]}, "prompt", "vocabulary"),
        ({"prompt": "a" * 600}, "prompt", "601.*512"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"max_tokens": -5}, "max_tokens", "at least 1"),
        ({"max_tokens": "abc"}, "max_tokens", "integer"),
        ({"max_tokens": 2.0}, "max_tokens", "integer"),
        ({"max_tokens": True}, "max_tokens", "integer"),
        ({"max_tokens": 512}, "max_tokens", "512"),
        ({"max_tokens": 10**30}, "max_tokens", "integer|length"),
        ({"temperature": -1}, "temperature", "from 0.0 to 2.0"),
        ({"temperature": 2.1}, "temperature", "from 0.0 to 2.0"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"top_p": 0}, "top_p", "above 0"),
        ({"top_p": 1.1}, "top_p", "at most 1"),
        ({"top_k": -2}, "top_k", "at least -1"),
        ({"min_p": 2}, "min_p", "from 0.0 to 1.0"),
        ({"repetition_penalty": 0}, "repetition_penalty", "above 0"),
        ({"presence_penalty": 3}, "presence_penalty", "from -2.0 to 2.0"),
        ({"frequency_penalty": -3}, "frequency_penalty", "from -2.0 to 2.0"),
        ({"n": 0}, "n", "from 1"),
        ({"n": 129}, "n", "from 1"),
        ({"n": 100}, "n", "64"),
        ({"best_of": 3}, "best_of", "best_of"),
        ({"best_of": 2, "n": 3, "use_beam_search": True}, "best_of", "width of the beam"),
        ({"use_beam_search": True, "n": 2, "stop": "x"}, "stop", "does not go with use_beam_search"),
        ({"use_beam_search": True, "early_stopping": "maybe"}, "early_stopping", "early_stopping"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"logprobs": 21}, "logprobs", "from 0 to 20"),
        ({"logprobs": True}, "logprobs", "integer"),
        ({"echo": "yes"}, "echo", "true or false"),
        ({"stop": ""}, "stop", "empty"),
        ({"stop": ["a"] * 17}, "stop", "17"),
        ({"stop": [1]}, "stop", "strings"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids", "integers"),
        ({"stop_token_ids": [VOCAB]}, "stop_token_ids", "vocabulary"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "-100 to 100"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {str(VOCAB): 1}}, "logit_bias", "vocabulary"),
        ({"logit_bias": [1]}, "logit_bias", "object"),
        ({"min_tokens": 30}, "min_tokens", "30.*16"),
        ({"seed": 1.5}, "seed", "integer"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream"),
        ({"model": 5}, "model", "string"),
        ({"priority": "high"}, "priority", "integer"),
        ({"cache_salt": 7}, "cache_salt", "string"),
    ],
)
def test_bad_fields_are_400_and_named(server: Any, change: dict[str, Any], param: str, words: str) -> None:
    status, answer, _ = server.call("/v1/completions", {"prompt": "abc", **change})
    error = assert_envelope(answer)
    assert status == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert re.search(words, error["message"]), error["message"]


def test_errors_of_a_stream_come_before_its_headers(server: Any) -> None:
    status, answer, headers = server.call("/v1/completions", {"prompt": [VOCAB], "stream": True})
    assert status == 400
    assert_envelope(answer)
    assert headers["Content-Type"].startswith("application/json")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b'{"prompt": NaN}', b"\xff\xfe", b'{"a":"\\ud800"}'])
def test_malformed_json(server: Any, body: bytes) -> None:
    status, answer, _ = server.call("/v1/completions", body, method="POST")
    assert status == 400
    assert_envelope(answer)


def test_unknown_model_path_and_method(server: Any) -> None:
    status, answer, _ = server.call("/v1/completions", {"model": "gpt-9", "prompt": "x"})
    assert (status, assert_envelope(answer)["code"]) == (404, "model_not_found")
    with pytest.raises(openai.NotFoundError):
        server.client.completions.create(model="gpt-9", prompt="x")
    status, answer, _ = server.call("/v1/nothing")
    assert status == 404
    assert_envelope(answer)
    status, answer, headers = server.call("/v1/completions")
    assert status == 405
    assert "POST" in headers["Allow"]
    assert_envelope(answer)


def test_too_large_a_body(start_server: Any) -> None:
    server = start_server(app={"max_body_bytes": 2000})
    status, answer, _ = server.call("/v1/completions", {"prompt": "a" * 3000})
    assert status == 413
    assert "2000" in assert_envelope(answer)["message"]
    assert server.complete("a", max_tokens=1)["choices"]


def test_api_key(start_server: Any) -> None:
    server = start_server(app={"api_key": "sesame"})
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "sesame"}):
        for path in ("/v1/models", "/metrics", "/nothing"):
            status, answer, received = server.call(path, headers=headers)
            assert status == 401
            assert received["WWW-Authenticate"] == "Bearer"
            assert assert_envelope(answer)["code"] == "invalid_api_key"
    assert server.call("/health")[0] == 200
    assert server.call("/v1/models", headers={"Authorization": "Bearer sesame"})[0] == 200
    with pytest.raises(openai.AuthenticationError):
        server.client.models.list()
    assert server.client.with_options(api_key="sesame").models.list().data[0].id == "hash"


def test_full_queue_is_429_and_a_batch_is_taken_whole_or_not(start_server: Any) -> None:
    server = start_server(max_waiting=3, max_num_seqs=1, step_seconds=0.01)
    status, answer, headers = server.call("/v1/completions", {"prompt": ["a", "b", "c", "d", "e", "f"]})
    assert status == 429
    assert headers["Retry-After"] == "1"
    assert assert_envelope(answer)["code"] == "queue_full"
    server.seconds_until_idle()
    assert server.complete(["a", "b"], max_tokens=1)["usage"]["prompt_tokens"] == 4
    with pytest.raises(openai.RateLimitError):
        server.client.completions.create(model="hash", prompt=["a"] * 9)


@pytest.mark.hash_only
def test_nan_logits_fail_one_call_and_leave_the_others(start_server: Any) -> None:
    server = start_server(step_seconds=0.002)
    server.runner.poisoned.add(tuple(b"bad"))
    answers: dict[str, Any] = {}

    def ask(name: str, prompt: str) -> None:
        body = {"prompt": prompt, "max_tokens": 20, "temperature": 0, "add_special_tokens": False, "ignore_eos": True}
        answers[name] = server.call("/v1/completions", body)

    threads = [threading.Thread(target=ask, args=pair) for pair in (("one", "good"), ("two", "bad"), ("three", "fine"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers["one"][0] == answers["three"][0] == 200
    assert answers["two"][0] == 500
    assert "not finite" in assert_envelope(answers["two"][1])["message"]
    assert server.call("/health")[0] == 200
    assert server.failures == []


@pytest.mark.hash_only
def test_a_failure_within_a_stream_is_in_band_and_without_done(start_server: Any) -> None:
    server = start_server(step_seconds=0.01)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request(
        "POST", "/v1/completions", b'{"prompt": "abc", "max_tokens": 200, "stream": true, "ignore_eos": true}'
    )
    response = connection.getresponse()
    assert response.status == 200
    response.readline()
    server.runner.explode = True
    rest = response.read().decode()
    server.runner.explode = False
    assert '"error"' in rest.split("\n\n")[-2]
    assert "out of memory" in rest
    assert "[DONE]" not in rest
    assert server.complete("abc", max_tokens=2)["choices"]


def test_a_broken_engine_fails_its_calls_and_says_so(start_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start_server()

    def collapse() -> None:
        raise RuntimeError("an invariant does not hold")

    monkeypatch.setattr(server.engine.scheduler, "audit", collapse)
    status, answer, _ = server.call("/v1/completions", {"prompt": "abc"})
    assert status == 500
    assert "invariant" in assert_envelope(answer)["message"]
    assert server.failures == ["engine"]
    assert server.call("/health")[0] == 503
    assert server.call("/v1/completions", {"prompt": "abc"})[0] == 503


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = """
prompt messages max_tokens temperature top_p top_k min_p n best_of stop logprobs echo stream stream_options
seed logit_bias stop_token_ids min_tokens priority cache_salt model suffix return_token_ids prompt_logprobs
top_logprobs max_completion_tokens response_format tools tool_choice chat_template_kwargs tokens content
"""
NAMES = st.sampled_from(FIELDS.split())


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(NAMES, JSON, max_size=4))
def test_no_body_makes_the_server_fail(server: Any, path: str, changes: dict[str, Any]) -> None:
    body = {"prompt": "ab", "max_tokens": 2, "messages": [{"role": "user", "content": "x"}], "tokens": [65], **changes}
    status, answer, _ = server.call(path, body)
    assert status in (200, 400, 404)
    if status != 200:
        assert_envelope(answer)
