"""/v1/models, /tokenize, /detokenize, /health, /metrics, /debug/kv."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from harness.results.schema import METRIC_NAMES


def test_models(server: Any) -> None:
    models = server.client.models.list().data
    assert [model.id for model in models] == ["hash"]
    status, model, _ = server.call("/v1/models/hash")
    assert status == 200
    assert model["max_model_len"] == 512
    assert server.call("/v1/models/other")[0] == 404
    assert server.call("/health") == (200, {"status": "ok"}, server.call("/health")[2])
    assert server.call("/version")[1] == {"version": "test"}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"prompt": "añb"}, "<bos>añb"),
        ({"prompt": "añb", "add_special_tokens": False}, "añb"),
        ({"content": "añb"}, "añb"),
        ({"content": "añb", "add_special": True}, "<bos>añb"),
        ({"messages": [{"role": "user", "content": "x"}]}, "user: x\nassistant:"),
        ({"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": False}, "user: x\n"),
        ({"prompt": "long " * 10_000, "add_special_tokens": False}, "long " * 10_000),
    ],
)
def test_tokenize_in_both_dialects_and_back(server: Any, body: dict[str, Any], text: str) -> None:
    status, answer, _ = server.call("/tokenize", {**body, "return_token_strs": True})
    assert status == 200
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == 512
    status, back, _ = server.call("/detokenize", {"tokens": answer["tokens"]})
    assert back == {"prompt": text, "content": text}


@pytest.mark.parametrize("body", [{}, {"prompt": 5}, {"messages": "x"}, {"content": []}])
def test_tokenize_refusals(server: Any, body: dict[str, Any]) -> None:
    status, answer, _ = server.call("/tokenize", body)
    assert status == 400
    assert answer["error"]["param"] in ("prompt", "messages", "content")


@pytest.mark.parametrize("tokens", [None, "abc", [-1], [2**40], [1.5]])
def test_detokenize_refusals(server: Any, tokens: Any) -> None:
    status, answer, _ = server.call("/detokenize", {"tokens": tokens})
    assert status == 400
    assert answer["error"]["param"] == "tokens"


def test_metrics_parse_and_speak_the_vocabulary(start_server: Any) -> None:
    server = start_server()
    for _ in range(3):
        server.complete("the same prompt again", max_tokens=4, ignore_eos=True)
    _, text, headers = server.call("/metrics")
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples = {sample.name: sample for family in families.values() for sample in family.samples}
    for name in METRIC_NAMES:
        assert f"pagedbench:{name}" in samples, name
    for name in ("requests_waiting", "requests_running", "kv_usage"):
        assert families[f"pagedbench:{name}"].type == "gauge"
    assert samples["pagedbench:generation_tokens_total"].value == 12
    assert samples["pagedbench:prefix_cache_hits_total"].value == 40
    info = samples["pagedbench:cache_config_info"]
    assert (info.value, info.labels["block_size"], info.labels["num_gpu_blocks"]) == (1, "4", "256")
    for name, count in (("time_to_first_token_seconds", 3), ("e2e_request_latency_seconds", 3)):
        buckets = [s.value for s in families[f"pagedbench:{name}"].samples if s.name.endswith("_bucket")]
        assert buckets == sorted(buckets)
        assert buckets[-1] == samples[f"pagedbench:{name}_count"].value == count
    assert samples["pagedbench:inter_token_latency_seconds_count"].value == 9


def test_metrics_while_running_add_up(start_server: Any) -> None:
    server = start_server(step_seconds=0.005)
    threads = [
        threading.Thread(target=server.complete, args=(f"prompt {i}",), kwargs={"max_tokens": 60, "ignore_eos": True})
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    seen = 0.0
    while any(thread.is_alive() for thread in threads):
        values = server.metrics()
        words = ("token_states", "reserved", "internal", "external", "cached", "free")
        assert sum(values[f"ledger_{word}"] for word in words) == values["kv_slots_reserved"] == 1024
        assert values["kv_usage"] == values["kv_slots_allocated"] / 1024
        seen = max(seen, values["requests_running"])
    for thread in threads:
        thread.join()
    assert seen >= 2
    assert server.metrics()["requests_running"] == 0


def test_debug_kv_shows_tables_only_when_asked_for(start_server: Any) -> None:
    assert start_server(app={"debug_endpoints": False}).call("/debug/kv")[0] == 404
    server = start_server(step_seconds=0.01, max_num_seqs=2)
    thread = threading.Thread(
        target=server.complete, args=(["abcdefgh", "zyxwvuts", "third"],), kwargs={"max_tokens": 80, "ignore_eos": True}
    )
    thread.start()
    while server.metrics()["requests_running"] < 2:
        pass
    _, dump, _ = server.call("/debug/kv?audit=1")
    thread.join()
    tables = [entry["block_table"] for entry in dump["sequences"]]
    assert len(tables) == 3
    assert sorted(map(bool, tables)) == [False, True, True]
    for entry in dump["sequences"]:
        assert len(entry["block_table"]) * dump["block_size"] >= entry["computed"]
    assert dump["ledger"]["total"] == 1024


@pytest.mark.parametrize("path", ["/reset_prefix_cache", "/flush_cache"])
def test_the_prefix_cache_can_be_emptied(server: Any, path: str) -> None:
    body = {"prompt": "the same prompt twice, and long enough", "max_tokens": 2}

    def cached() -> int:
        return int(server.call("/v1/completions", body)[1]["usage"]["prompt_tokens_details"]["cached_tokens"])

    cached()
    assert cached() > 0
    status, answer, _ = server.call(path, {})
    assert status == 200
    assert answer["forgotten_blocks"] > 0
    assert cached() == 0
    assert server.call(path, {})[1]["forgotten_blocks"] > 0
