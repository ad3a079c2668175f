"""API, continued: what ends an answer, in the field that replaced ``max_tokens`` and in those that engines share beyond it."""

from __future__ import annotations

from typing import NamedTuple

from harness.conformance.case import case
from harness.conformance.context import Context
from harness.conformance.prompts import Prompt

SPEC = "OpenAI OpenAPI 2026-08-21"
VLLM = "vLLM: docs, SamplingParams"
LENGTH = 24  # tokens of the answers that are cut


@case(
    "API-20",
    "MUST",
    "max_completion_tokens bounds a chat answer",
    source=f"{SPEC}: CreateChatCompletionRequest.max_completion_tokens",
    needs="chat stream",
    kills="E12",
    evidence="usage of answers that were cut",
    structural=True,
)
async def completion_limit(ctx: Context) -> None:
    counted = 0
    for limit in (1, 5, 12):
        streamed = await ctx.api.stream(
            "/v1/chat/completions",
            {
                "messages": [{"role": "user", "content": ctx.prompts.text(ctx.rng, 10)}],
                "max_completion_tokens": limit,
                "stream_options": {"include_usage": True},
                **({"ignore_eos": True} if ctx.features.has("ignore_eos") else {}),
            },
            cancel_after=4 * limit + 40,  # whoever ignores the limit might go on for long
        )
        ctx.require(
            not streamed.was_cancelled,
            f"with max_completion_tokens {limit} {len(streamed.events)} chunks came and no end",
        )
        answer = streamed.answer()
        if answer.completion_tokens is None:
            continue
        counted += 1
        ctx.require(
            answer.completion_tokens <= limit,
            f"{answer.completion_tokens} tokens came with max_completion_tokens {limit}",
        )
        ctx.require(
            answer.first.finish == "stop" or answer.completion_tokens == limit,
            f"an answer ends by {answer.first.finish!r} after {answer.completion_tokens} of {limit} tokens",
        )
    ctx.saw(counted=counted)
    ctx.need_evidence(counted, "no stream told its usage")


class Known(NamedTuple):
    """A greedy answer, and the place of a token in it that does not come before."""

    prompt: Prompt
    text: str
    ids: list[int]
    place: int

    def agrees(self, ids: list[int]) -> bool:
        """Whether another answer goes the same way up to the place, as far as it goes; else a tie went the other way."""
        return ids[: self.place] == self.ids[: self.place][: len(ids)]


async def known_answers(ctx: Context, count: int) -> list[Known]:
    found = []
    for number in range(2 * count):
        prompt = ctx.prompts.make_prompt(ctx.rng, 9 + number)
        answer = await ctx.api.complete(prompt, **ctx.fields(LENGTH))
        ids = answer.first.token_ids() or []
        places = [place for place in range(2, len(ids) - 6) if ids[place] not in ids[:place]]
        if places:
            found.append(Known(prompt, answer.text, ids, ctx.rng.choice(places)))
        if len(found) == count:
            break
    return found


@case(
    "API-21",
    "SHOULD",
    "stop_token_ids ends the answer at the first of these tokens",
    source=VLLM,
    needs="completions token_ids stop_token_ids",
    kills="E12",
    evidence="answers that had held the token",
    structural=True,
)
async def stop_tokens(ctx: Context) -> None:
    hits = 0
    for number, known in enumerate(await known_answers(ctx, ctx.size(8, 4))):
        fields = ctx.fields(LENGTH, stop_token_ids=[known.ids[known.place]])
        if number % 2 and ctx.features.has("stream"):
            answer = (await ctx.api.stream_complete(known.prompt, **fields)).answer()
        else:
            answer = await ctx.api.complete(known.prompt, **fields)
        ids = answer.first.token_ids() or []
        if not known.agrees(ids):
            continue
        hits += 1
        # Whether the token itself is told is the engine's choice.
        ctx.require(
            answer.first.finish == "stop" and known.place <= len(ids) <= known.place + 1,
            f"with stop_token_ids [{known.ids[known.place]}], token {known.place} of the answer, {len(ids)} tokens came, "
            f"ended by {answer.first.finish!r}",
        )
        ctx.require(
            known.text.startswith(answer.text),
            f"the text up to a stop token is {answer.text[:80]!r}, that of the whole answer {known.text[:80]!r}",
        )
    ctx.saw(stopped=hits)
    ctx.need_evidence(hits >= 3, f"only {hits} answers could be stopped by a token")


@case(
    "API-22",
    "SHOULD",
    "min_tokens: no stop token comes before, and no end",
    source=VLLM,
    needs="completions token_ids stop_token_ids min_tokens",
    kills="E12",
    evidence="answers that would have ended earlier",
    structural=True,
)
async def least_tokens(ctx: Context) -> None:
    tried = 0
    for known in await known_answers(ctx, ctx.size(8, 4)):
        stop, least = known.ids[known.place], known.place + 1 + ctx.rng.randint(1, 5)
        answer = await ctx.api.complete(known.prompt, **ctx.fields(LENGTH, stop_token_ids=[stop], min_tokens=least))
        ids = answer.first.token_ids() or []
        if not known.agrees(ids):
            continue
        tried += 1
        ctx.require(
            (answer.completion_tokens or len(ids)) >= least and stop not in ids[: least - 1],
            f"with min_tokens {least} an answer has {len(ids)} tokens{' and holds' if stop in ids else ', without'} the stop "
            f"token {stop}, which token {known.place} would be",
        )
    ctx.saw(tried=tried)
    ctx.need_evidence(tried >= 3, f"only {tried} answers could be held back from their end")


@case(
    "API-23",
    "SHOULD",
    "include_stop_str_in_output: the text ends with the stop string, and without it before",
    source=VLLM,
    needs="completions stop stop_in_output",
    kills="E12",
    evidence="stop strings that were really generated",
    structural=True,
)
async def stop_told(ctx: Context) -> None:
    hits = 0
    for number in range(ctx.size(8, 4)):
        prompt = ctx.prompts.make_prompt(ctx.rng, 9 + number)
        fields = ctx.fields(LENGTH)
        fields.pop("logprobs", None)
        whole = await ctx.api.complete(prompt, **fields)
        if len(whole.text) < 12:
            continue
        start = ctx.rng.randrange(2, len(whole.text) - 8)
        stop = whole.text[start : start + 5]
        if not stop.strip() or "\ufffd" in stop:
            continue
        cut = whole.text.index(stop)
        for is_told, due in ((True, whole.text[: cut + len(stop)]), (False, whole.text[:cut])):
            both = {**fields, "stop": [stop], "include_stop_str_in_output": is_told}
            answers = [await ctx.api.complete(prompt, **both)]
            if ctx.features.has("stream"):
                answers.append((await ctx.api.stream_complete(prompt, **both)).answer())
            for answer in answers:
                if not whole.text.startswith(answer.text[:cut]):
                    continue  # a tie went the other way
                hits += 1
                ctx.require(
                    answer.text == due,
                    f"with the stop string {stop!r} {'in' if is_told else 'not in'} the output the text ends with "
                    f"{answer.text[-24:]!r}, due is {due[-24:]!r}",
                )
    ctx.saw(stops_hit=hits)
    ctx.need_evidence(hits >= 6, f"only {hits} stop strings were reached")
