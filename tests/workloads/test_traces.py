"""Traces and imported conversations: times, lengths, shared parts and sentences for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workloads.registry import parse_workload
from workloads.request import Load, WorkloadError
from workloads.tokens import WordCounter

COUNTER = WordCounter()

MOONCAKE = """\
{"timestamp": 0, "input_length": 1100, "output_length": 52, "hash_ids": [46, 47, 48]}
{"timestamp": 3000, "input_length": 1300, "output_length": 26, "hash_ids": [46, 47, 57]}
{"timestamp": 3052, "input_length": 600, "output_length": 5, "hash_ids": [90, 91]}
"""
BURSTGPT = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45.5,ChatGPT,1087,0,1087,API log
118,GPT-4,417,276,693,Conversation log
"""
AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""


def write(folder: Path, text: str, name: str = "trace") -> str:
    file = folder / name
    file.write_text(text)
    return str(file)


def test_mooncake_keeps_times_lengths_and_shared_blocks(tmp_path: Path) -> None:
    workload = parse_workload(f"trace:file={write(tmp_path, MOONCAKE)}")
    assert workload.loads() == (Load("trace"),)
    one, two, three = workload.requests(99, 1, COUNTER)
    assert [r.at_ns for r in (one, two, three)] == [0, 3_000_000_000, 3_052_000_000]
    assert [(r.prompt_tokens, r.output_tokens) for r in (one, two, three)] == [(1100, 52), (1300, 26), (600, 5)]
    words = [str(r.prompt).split() for r in (one, two, three)]
    assert words[0][:1024] == words[1][:1024]
    assert words[0][1024:] != words[1][1024:1100]
    assert words[2][:512] != words[0][:512]
    assert (one.shared_tokens, two.shared_tokens, three.shared_tokens) == (0, 1024, 0)


def test_burstgpt_and_azure(tmp_path: Path) -> None:
    burst = parse_workload(f"trace:file={write(tmp_path, BURSTGPT)},speed=2").requests(99, 1, COUNTER)
    assert [(r.at_ns, r.prompt_tokens, r.output_tokens) for r in burst] == [(0, 472, 18), (56_500_000_000, 417, 276)]
    azure = parse_workload(f"trace:file={write(tmp_path, AZURE)}").requests(99, 1, COUNTER)
    assert [(r.at_ns, r.prompt_tokens, r.output_tokens) for r in azure] == [(0, 374, 44), (4_314_579_000, 396, 109)]


def test_plain_json_lines(tmp_path: Path) -> None:
    lines = '{"prompt": "hello big world", "max_tokens": 7}\n{"input_length": 9, "output_length": 3}\n'
    file = write(tmp_path, lines)
    requests = parse_workload(f"trace:file={file},concurrency=4").requests(99, 1, COUNTER)
    assert [(r.prompt_tokens, r.output_tokens, r.at_ns) for r in requests] == [(3, 7, None), (9, 3, None)]
    assert requests[0].prompt == "hello big world"
    talk = {"messages": [{"role": "user", "content": "one two"}], "max_tokens": 2, "timestamp": 1.5}
    (said,) = parse_workload(f"trace:file={write(tmp_path, json.dumps(talk))}").requests(99, 1, COUNTER)
    assert said.messages == ({"role": "user", "content": "one two"},)
    assert said.at_ns == 0


def test_the_same_seed_makes_the_same_words(tmp_path: Path) -> None:
    workload = parse_workload(f"trace:file={write(tmp_path, MOONCAKE)}")
    assert workload.requests(3, 7, COUNTER) == workload.requests(3, 7, COUNTER)
    assert workload.requests(3, 7, COUNTER) != workload.requests(3, 8, COUNTER)


def test_scale_makes_a_trace_fit_a_small_machine(tmp_path: Path) -> None:
    workload = parse_workload(f"trace:file={write(tmp_path, MOONCAKE)},scale=0.1")
    one, two, _ = workload.requests(3, 1, COUNTER, max_model_len=256)
    assert (one.prompt_tokens, two.prompt_tokens) == (110, 130)
    assert (two.shared_tokens, two.output_tokens) == (102, 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "looks like no format"),
        ("{}\n", "line 1 is no row of a jsonl"),
        ('{"hash_ids": []}', "lacks 'timestamp'"),
        (MOONCAKE + "{", "line 4 is not JSON"),
        (BURSTGPT.replace("472", "many"), "line 2 is no row of a burstgpt trace"),
        (AZURE.replace("2023-11-16", "yesterday"), "line 2 is no row of a azure trace"),
        ('{"prompt": "a", "max_tokens": 1, "timestamp": 1}\n{"prompt": "b", "max_tokens": 1}', "some rows only"),
        (BURSTGPT.split("\n")[0], "holds no request"),
    ],
)
def test_broken_traces_get_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(WorkloadError, match=words):
        parse_workload(f"trace:file={write(tmp_path, text)}").requests(9, 1, COUNTER)


def test_a_trace_needs_its_file() -> None:
    with pytest.raises(WorkloadError, match="needs a file"):
        parse_workload("trace").requests(1, 0, COUNTER)
    with pytest.raises(WorkloadError, match="cannot read"):
        parse_workload("trace:file=/nowhere/x").requests(1, 0, COUNTER)


def conversations(*answers: tuple[str, str]) -> str:
    said = [{"from": "gpt" if i % 2 else "human", "value": text} for pair in answers for i, text in enumerate(pair)]
    return json.dumps([{"id": "a", "conversations": said}, {"id": "b", "conversations": []}])


def test_sharegpt_gives_the_questions_and_the_lengths_of_the_answers(tmp_path: Path) -> None:
    file = write(tmp_path, conversations(("what is paging", "a way to keep books"), ("thank you", "welcome")))
    first, second, again = parse_workload(f"chat:file={file},turns=5").requests(3, 1, COUNTER)
    assert first.messages == ({"role": "user", "content": "what is paging"},)
    assert (first.prompt_tokens, first.output_tokens) == (3, 5)
    assert second.messages is not None
    assert [message["content"] for message in second.messages] == ["what is paging", "a way to keep books", "thank you"]
    assert second.answers == ((1, 0),)
    assert (again.conversation, again.turn) == (1, 0)


def test_conversations_that_do_not_fit_are_passed_over(tmp_path: Path) -> None:
    long = json.loads(conversations(("word " * 300, "yes")))
    short = json.loads(conversations(("a short question", "and an answer")))
    file = write(tmp_path, json.dumps(long + short))
    requests = parse_workload(f"chat:file={file}").requests(5, 1, COUNTER, max_model_len=100)
    assert {r.prompt_tokens for r in requests} == {3}
    with pytest.raises(WorkloadError, match="do not fit"):
        parse_workload(f"chat:file={write(tmp_path, json.dumps(long))}").requests(5, 1, COUNTER, max_model_len=100)


@pytest.mark.parametrize(("text", "words"), [("{", "is not JSON"), ("{}", "a list"), ("[{}]", "no conversation")])
def test_broken_conversations_get_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(WorkloadError, match=words):
        parse_workload(f"chat:file={write(tmp_path, text)}").requests(1, 0, COUNTER)
