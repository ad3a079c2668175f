"""Later turns carry real answers; a planned hang-up happens; several answers are asked for and counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.load.cell import CellPlan, CellRun
from harness.load.client import Client
from harness.load.dialect import Dialect
from harness.load.history import fill_answers, wanted_answers
from workloads.request import Load, Message, RequestSpec


def chat(index: int, *contents: str, **more: Any) -> RequestSpec:
    roles = ("user", "assistant")
    messages = tuple(Message(role=roles[i % 2], content=text) for i, text in enumerate(contents))
    return RequestSpec(index, messages, None, prompt_tokens=5, output_tokens=3, **more)


class Rows:
    """A sink that keeps rows."""

    def __init__(self) -> None:
        self.tables: dict[str, list[dict[str, Any]]] = {}

    def append(self, table: str, rows: Any) -> None:
        self.tables.setdefault(table, []).extend(dict(row) for row in rows)


async def drive(server: Any, *requests: RequestSpec) -> list[dict[str, Any]]:
    rows = Rows()
    async with Client(server.url) as client:
        plan = CellPlan("cell", Load("closed", concurrency=1), (), requests)
        await CellRun(plan, client, Dialect("words"), rows).run()
    return rows.tables["requests"]


async def test_the_real_answer_replaces_the_planned_words(server: Any) -> None:
    first = chat(0, "hello")
    second = chat(1, "hello", "planned", "and now", after=0, answers=((1, 0),))
    records = await drive(server, first, second)
    assert [record["ok"] for record in records] == [True, True]
    sent = [asked.json["messages"] for asked in server.asked]
    assert [message["content"] for message in sent[1]] == ["hello", " w0 w1 w2", "and now"]


async def test_a_failed_turn_leaves_the_planned_words(server: Any) -> None:
    async def fail_first(connection: Any, asked: Any) -> None:
        if len(server.asked) == 1:
            connection.answer({"error": {"message": "no"}}, status=500)
        else:
            await server.stream(connection, asked)

    server.script = fail_first
    await drive(server, chat(0, "hello"), chat(1, "hello", "planned", "and now", after=0, answers=((1, 0),)))
    assert server.asked[1].json["messages"][1]["content"] == "planned"


def test_only_named_answers_are_kept() -> None:
    request = chat(2, "a", "b", "c", answers=((1, 0),))
    assert wanted_answers([chat(0, "a"), request]) == {0}
    assert fill_answers(request, {5: "x"}) == request
    assert fill_answers(replace(request, answers=()), {0: "x"}).messages == request.messages


async def test_a_planned_hang_up_is_a_cancelled_request(server: Any) -> None:
    server.itl_s = 0.5
    (record,) = await drive(server, chat(0, "hello", cancel_after_s=0.05))
    assert record["error_class"] == "cancelled"
    assert record["t_done"] - record["t_ready"] < 1_000_000_000


async def test_several_answers_are_asked_for_and_told_apart(server: Any, wire: Any) -> None:
    async def two(connection: Any, asked: Any) -> None:
        assert asked.json["n"] == 2
        connection.head()
        order = server.order
        for index, text, reason in order:
            choice = {"index": index, "delta": {"content": text}, "finish_reason": reason}
            connection.body(wire.event({"choices": [choice]}))
        connection.body(wire.usage(5, 6) + wire.done)
        connection.end()

    server.script = two
    server.order = [(0, "a", None), (1, "x", None), (0, "b", "length"), (1, "y", "length")]
    (one,) = await drive(server, chat(0, "hello", n=2))
    server.order = [(1, "x", None), (1, "y", "length"), (0, "a", None), (0, "b", "length")]
    (other,) = await drive(server, chat(0, "hello", n=2))
    assert one["output_sha256"] == other["output_sha256"]
    assert (one["output_tokens"], one["planned_output_tokens"]) == (6, 6)
    server.order = [(0, "a", None), (0, "x", "length"), (1, "b", None), (1, "y", "length")]
    (third,) = await drive(server, chat(0, "hello", n=2))
    assert third["output_sha256"] != one["output_sha256"]
