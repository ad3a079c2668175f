"""The probe: who the engine is, what it can do, and nothing that a server sends makes it fall over."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import pytest
from fake_api import FakeApi, serving

from harness.engines.asker import MAX_BODY, base_url
from harness.engines.dialects import dialect_of
from harness.engines.errors import EngineError, UnreachableError
from harness.engines.probe import Probe, probe


async def probe_api(api: FakeApi, **options: Any) -> Probe:
    async with serving(api) as url:
        return await probe(url, timeout_s=options.pop("timeout_s", 10.0), **options)


async def test_an_engine_that_does_everything() -> None:
    found = await probe_api(FakeApi(), name="mine")
    assert found.info.model_dump(exclude={"url"}) == {
        "name": "mine",
        "recipe": None,
        "kind": "vllm",
        "version": "1.2.3",
        "model": "tiny",
        "max_model_len": 512,
        "dtype": None,
        "settings": {},
    }
    able = found.capabilities
    assert (able.completions, able.chat, able.done_marker, able.stream_options) == (True, True, True, True)
    assert (able.stream_usage, able.ignore_eos, able.min_tokens) == ("asked", "honoured", None)
    assert (able.token_id_prompts, able.return_token_ids, able.cached_tokens) == (True, True, True)
    assert (able.tokenize, able.metrics, able.metric_names) == ("vllm", True, ["requests_running"])
    assert able.notes == []
    dialect = dialect_of(found, {"top_k": 1})
    assert dialect.model == "tiny"
    assert dialect.extra_body == {"top_k": 1}
    assert dialect.fixes_lengths
    assert dialect.sends_done


async def test_an_engine_like_transformers_serve() -> None:
    api = FakeApi(
        models=None,
        broken={"/v1/models": 500},
        metrics=None,
        version=None,
        openapi_paths=("/load_model",),
        tokenize=None,
        refused=("ignore_eos", "min_tokens", "return_token_ids", "token_ids"),
        usage_when="always",
        done=False,
    )
    found = await probe_api(api, fallback_model="dir")
    able = found.capabilities
    assert found.info.kind == "transformers"
    assert found.info.model == "dir"
    assert (able.ignore_eos, able.min_tokens) == ("refused", "refused")
    assert (able.token_id_prompts, able.return_token_ids) == (False, False)
    assert (able.done_marker, able.stream_usage, able.tokenize, able.metrics) == (False, "always", None, False)
    assert "GET /v1/models: HTTP 500" in able.notes
    dialect = dialect_of(found)
    assert not dialect.fixes_lengths
    assert not dialect.sends_done
    assert dialect.include_usage


async def test_an_engine_like_llama_cpp() -> None:
    api = FakeApi(
        models={"data": [{"id": "m", "owned_by": "llamacpp", "meta": {"ftype": "all F32"}}]},
        metrics=None,
        version=None,
        props={"total_slots": 4, "build_info": "b123", "default_generation_settings": {"n_ctx": 256}},
        slots=[],
        tokenize="llama.cpp",
        ignored=("return_token_ids",),
        server="llama.cpp",
    )
    found = await probe_api(api)
    assert (found.info.kind, found.info.version, found.info.max_model_len) == ("llama.cpp", "b123", 256)
    assert found.info.dtype == "all F32"
    assert found.info.settings == {"max_num_seqs": 4, "slot_tokens": 256}
    assert found.capabilities.tokenize == "llama.cpp"
    assert found.capabilities.slots is True
    assert found.capabilities.return_token_ids is False


async def test_fields_that_are_accepted_without_effect() -> None:
    able = (await probe_api(FakeApi(ignored=("ignore_eos",)))).capabilities
    assert able.ignore_eos == "accepted"
    # An answer that fills the limit on its own shows nothing.
    assert (await probe_api(FakeApi(short_answer=100))).capabilities.ignore_eos == "accepted"


async def test_min_tokens_where_ignore_eos_is_refused() -> None:
    found = await probe_api(FakeApi(refused=("ignore_eos",)))
    assert (found.capabilities.ignore_eos, found.capabilities.min_tokens) == ("refused", "honoured")
    assert dialect_of(found).min_tokens
    assert not dialect_of(found).ignore_eos


@pytest.mark.parametrize(("when", "expected"), [("always", "always"), ("never", "never"), ("asked", "asked")])
async def test_stream_usage(when: str, expected: str) -> None:
    assert (await probe_api(FakeApi(usage_when=when))).capabilities.stream_usage == expected


async def test_stream_options_refused() -> None:
    found = await probe_api(FakeApi(refused=("stream_options",), usage_when="never"))
    assert found.capabilities.stream_options is False
    assert not dialect_of(found).include_usage


async def test_chat_only_and_completions_only() -> None:
    able = (await probe_api(FakeApi(completions=False))).capabilities
    assert (able.completions, able.chat, able.done_marker, able.stream_usage) == (False, True, True, "asked")
    assert any(note.startswith("POST /v1/completions: HTTP 404") for note in able.notes)
    able = (await probe_api(FakeApi(chat=False))).capabilities
    assert (able.completions, able.chat, able.ignore_eos, able.done_marker) == (True, False, None, True)


async def test_without_generation_nothing_is_generated() -> None:
    api = FakeApi()
    found = await probe_api(api, generate=False)
    assert found.info.model == "tiny"
    assert found.capabilities.completions is None
    assert found.capabilities.metrics
    assert all(not path.startswith("/v1/c") for path, _ in api.asked)


async def test_the_wanted_model_is_asked_for() -> None:
    models = {"data": [{"id": "a", "max_model_len": 1}, {"id": "b", "max_model_len": 2}]}
    api = FakeApi(models=models)
    found = await probe_api(api, model="b")
    assert (found.info.model, found.info.max_model_len) == ("b", 2)
    assert {body.get("model") for path, body in api.asked if path.startswith("/v1/c")} == {"b"}
    assert (await probe_api(FakeApi(models=models))).info.model == "a"


async def test_a_model_that_only_the_answers_name() -> None:
    assert (await probe_api(FakeApi(models=None))).info.model == "tiny@main"
    found = await probe_api(FakeApi(models=None), generate=False)
    with pytest.raises(EngineError, match="lists no model"):
        dialect_of(found)


async def test_api_keys() -> None:
    assert (await probe_api(FakeApi(api_key="s3"), api_key="s3")).capabilities.completions is True
    denied = await probe_api(FakeApi(api_key="s3"))
    assert denied.capabilities.completions is False
    assert any("401" in note for note in denied.capabilities.notes)
    assert not any("s3" in note for note in denied.capabilities.notes)


PATHS = (
    "/v1/models",
    "/version",
    "/metrics",
    "/props",
    "/slots",
    "/v1/completions",
    "/v1/chat/completions",
    "/tokenize",
)


@pytest.mark.parametrize(
    "wrong",
    [500, 204, "<html>hello</html>", "[]", "null", "{", '"text"', "[[[[", '{"data": 3, "choices": 7, "tokens": {}}'],
)
async def test_servers_that_answer_nonsense_everywhere(wrong: Any) -> None:
    found = await probe_api(FakeApi(broken=dict.fromkeys(PATHS, wrong)))
    able = found.capabilities
    assert found.info.version is None
    assert not able.metrics
    assert able.tokenize is None
    assert not able.done_marker


async def test_nonsense_inside_of_good_answers() -> None:
    models: list[Any] = [
        {"data": [None, 3, {"id": 5, "max_model_len": "long", "meta": [], "owned_by": None}]},
        {"data": [{"id": "m", "max_model_len": True}]},
        {"data": {}},
        [],
    ]
    for answer in models:
        found = await probe_api(FakeApi(models=answer, props={"default_generation_settings": 3}), generate=False)
        assert found.info.max_model_len is None


async def test_a_broken_exposition_is_noted() -> None:
    found = await probe_api(FakeApi(metrics="vllm:num_requests_running many\n"), generate=False)
    assert found.capabilities.metrics is False
    assert any("/metrics" in note for note in found.capabilities.notes)


async def test_a_server_that_hangs_costs_its_timeout_and_no_more() -> None:
    api = FakeApi(broken={"/v1/completions": "hang"})
    found = await asyncio.wait_for(probe_api(api, timeout_s=0.3), 20)
    assert found.capabilities.completions is None or found.capabilities.completions is False
    assert any("no answer within 0.3 s" in note for note in found.capabilities.notes)
    assert found.capabilities.chat is True


@pytest.mark.parametrize("late", [("/metrics",), ("/metrics", "/version", "/v1/models")])
async def test_what_a_busy_engine_answers_late_is_not_absent(late: tuple[str, ...], monkeypatch: Any) -> None:
    monkeypatch.setattr("harness.engines.probe.FIRST_S", 0.3)
    api = FakeApi(late=dict.fromkeys(late, 0.8))
    found = await probe_api(api, generate=False)
    assert found.capabilities.metrics is True
    assert found.info.model == "tiny"
    assert not found.capabilities.notes
    assert [path for path, _ in api.asked].count("/metrics") == 2


async def test_a_question_that_never_is_answered_is_asked_twice_and_noted(monkeypatch: Any) -> None:
    monkeypatch.setattr("harness.engines.probe.FIRST_S", 0.3)
    monkeypatch.setattr("harness.engines.probe.SECOND_S", 0.4)
    found = await asyncio.wait_for(probe_api(FakeApi(broken={"/metrics": "hang"}), generate=False), 10)
    assert found.capabilities.metrics is False
    assert found.capabilities.notes == ["GET /metrics: no answer within 0.4 s"]


async def test_an_endless_answer_is_cut() -> None:
    api = FakeApi(metrics="x" * (MAX_BODY + 100_000))
    assert (await probe_api(api, generate=False)).info.model == "tiny"


async def raw_server(answer: bytes) -> asyncio.Server:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read(100)
            writer.write(answer)
            await writer.drain()
            writer.close()

    return await asyncio.start_server(talk, "127.0.0.1", 0)


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort", b"\x00" * 500]
)
async def test_servers_that_do_not_speak_http(answer: bytes) -> None:
    server = await raw_server(answer)
    async with server:
        with pytest.raises(UnreachableError, match="no HTTP server answers"):
            await probe(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")


async def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        with pytest.raises(UnreachableError, match=r"127\.0\.0\.1"):
            await probe(f"http://127.0.0.1:{taken.getsockname()[1]}")


@pytest.mark.parametrize(
    ("given", "root"),
    [
        ("http://h:1", "http://h:1"),
        ("http://h:1/v1/", "http://h:1"),
        ("h:1/v1", "http://h:1"),
        (" https://h/api/v1 ", "https://h/api"),
    ],
)
def test_base_urls(given: str, root: str) -> None:
    assert base_url(given) == root
