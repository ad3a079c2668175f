"""TOK: prompts become the tokens that the model's tokenizer and chat template say."""

from __future__ import annotations

from typing import Any

from harness.conformance.api import Api
from harness.conformance.case import Inconclusive, Unsupported, case
from harness.conformance.context import Context
from harness.conformance.prompts import detokenize, tokenize

TEXTS = (
    "Hello",
    "Hello, world!",
    " leading space",
    "trailing space ",
    "two  spaces   three",
    "line\nbreak",
    "line\n\nbreak\n",
    "\ttabbed\ttext",
    "MiXeD CaSe",
    "numbers 0 1 12 123 1234 12345",
    "3.14159 and 1e-9",
    "don't can't won't it's",
    "naïve café résumé",
    "東京都は日本の首都です",
    "мир и труд",
    "مرحبا بالعالم",
    "สวัสดีครับ",
    "🙂🙃🎉 emoji 🚀",
    "👩‍👩‍👧 family",
    "e\u0301 combining",
    "def f(x):\n    return x**2\n",
    "{'a': [1, 2, 3], \"b\": null}",
    "<html><body>&amp;</body></html>",
    "http://example.com/a?b=c&d=e#f",
    "a_b-c.d/e\\f",
    "!!!???...",
    "\u00a0non\u00a0breaking",
    "zero\u200bwidth",
    "The quick brown fox jumps over the lazy dog. " * 4,
    "word " * 40,
)


async def counts_by(api: Api, body: dict[str, Any]) -> list[int] | None:
    """Ids that a server's /tokenize gives, or None."""
    reply = await api.post("/tokenize", body)
    document = reply.json() if reply.status == 200 else None
    tokens = document.get("tokens") if isinstance(document, dict) else None
    return tokens if isinstance(tokens, list) and tokens else None


def oracle(ctx: Context) -> Api:
    """Who tokenizes: the reference where there is one, else the engine."""
    api = ctx.tokenizers[-1]
    ctx.stand_on("reference tokenizer" if api is ctx.reference else "the engine's own /tokenize")
    return api


async def rendered(ctx: Context, messages: list[dict[str, Any]]) -> list[int] | None:
    """Ids of a rendered chat with its generation prompt."""
    return await counts_by(oracle(ctx), {"messages": messages, "add_generation_prompt": True})


@case(
    "TOK-01",
    "MUST",
    "prompt_tokens is what the tokenizer gives, for 30 texts",
    source="Kimi Vendor Verifier: prompt tokens",
    needs="completions tokenize",
    kills="F49 F41 E3",
    oracle="tokenizer of the reference, else of the engine",
    structural=True,
)
async def prompt_tokens(ctx: Context) -> None:
    api = oracle(ctx)
    wrong = []
    for text in TEXTS:
        ids = await counts_by(api, {"prompt": text, "add_special_tokens": True}) or await ctx.judge.tokenize(text)
        answer = await ctx.api.complete(text, max_tokens=1)
        if ids is None or answer.prompt_tokens is None:
            raise Inconclusive("nothing tokenizes, or usage lacks prompt_tokens")
        if answer.prompt_tokens != len(ids):
            wrong.append(f"{text[:24]!r}: {answer.prompt_tokens} for {len(ids)} tokens")
    ctx.saw(texts=len(TEXTS))
    ctx.require(
        not wrong,
        f"prompt_tokens is wrong for {len(wrong)} of {len(TEXTS)} texts; {wrong[0] if wrong else ''}",
        wrong=wrong[:5],
    )


CHATS: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the sea?"}],
    [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "One."},
        {"role": "user", "content": "And two?"},
    ],
    [{"role": "user", "content": "  spaces\n\nand lines  "}],
)


@case(
    "TOK-02",
    "MUST",
    "a chat is a completion of its rendered template",
    source="vLLM blog 2025-10-28: render outside, send to completions",
    needs="chat completions id_prompts tokenize",
    kills="F49",
    oracle="the rendered template sent as token ids; margin where the text differs",
    structural=True,
)
async def chat_is_completion(ctx: Context) -> None:
    for messages in CHATS:
        ids = await rendered(ctx, messages)
        if ids is None:
            raise Unsupported("neither the engine nor a reference renders chats into tokens (/tokenize with messages)")
        chat = await ctx.api.chat(messages, max_tokens=16)
        ctx.require(
            chat.prompt_tokens in (None, len(ids)),
            f"a chat of {len(ids)} tokens counts as {chat.prompt_tokens}",
            messages=messages,
        )
        plain = await ctx.api.complete(
            ids, **{**ctx.fields(16), "ignore_eos": False} if ctx.features.has("ignore_eos") else ctx.fields(16)
        )
        if chat.text.strip() == plain.text.strip():
            continue
        scores = plain.first.scores
        ctx.need_evidence(scores, "the texts differ and nothing tells by how much")
        place = 0
        for score in scores or []:
            place += len(score.token)
            if chat.text[:place] != plain.text[:place]:
                gap = score.gap or 0.0
                ctx.require(
                    gap <= ctx.limits.regret,
                    f"the chat says {chat.text[:60]!r}, its rendered template {plain.text[:60]!r}",
                    gap=gap,
                )
                break


@case(
    "TOK-03",
    "MUST",
    "no begin-of-sequence token comes twice",
    source="own; known from templates that write BOS and tokenizers that add it",
    needs="generate tokenize",
    kills="F49",
    oracle="tokenizer of the reference, else of the engine",
    structural=True,
)
async def one_bos(ctx: Context) -> None:
    checked = 0
    if ctx.features.has("completions"):
        whole = await ctx.judge.tokenize("Hello there")
        bare = await counts_by(oracle(ctx), {"prompt": "Hello there", "add_special_tokens": False})
        answer = await ctx.api.complete("Hello there", max_tokens=1)
        if whole is not None and answer.prompt_tokens is not None:
            extra = answer.prompt_tokens - len(whole)
            ctx.require(extra == 0, f"a prompt has {extra} tokens more than the tokenizer gives")
            checked += 1
            if bare is not None:
                added = len(whole) - len(bare)
                ctx.require(added <= 2, f"the tokenizer puts {added} special tokens around a text")
    if ctx.features.has("chat"):
        ids = await rendered(ctx, CHATS[0])
        chat = await ctx.api.chat(CHATS[0], max_tokens=1)
        if ids is not None and chat.prompt_tokens is not None:
            ctx.require(chat.prompt_tokens == len(ids), f"a chat of {len(ids)} tokens counts as {chat.prompt_tokens}")
            start = ctx.prompts.start
            ctx.require(not start or ids[: 2 * len(start)] != start * 2, "the rendered chat begins with two BOS tokens")
            checked += 1
    ctx.need_evidence(checked, "no token counts could be compared")


@case(
    "TOK-04",
    "SHOULD",
    "content as a string and as a list with one text are the same",
    source="vLLM blog 2025-10-28",
    needs="chat",
    kills="F49",
    structural=True,
)
async def content_forms(ctx: Context) -> None:
    for text in ("", "Hello there", "two\nlines"):
        plain = await ctx.api.chat([{"role": "user", "content": text}], max_tokens=8)
        listed = await ctx.api.chat([{"role": "user", "content": [{"type": "text", "text": text}]}], max_tokens=8)
        ctx.require(
            plain.prompt_tokens == listed.prompt_tokens,
            f"content {text!r} counts {plain.prompt_tokens} tokens as a string and {listed.prompt_tokens} as a list",
        )
        ctx.require(
            plain.text == listed.text,
            f"content {text!r} is answered {plain.text!r} as a string, {listed.text!r} as a list",
        )


@case(
    "TOK-05",
    "SHOULD",
    "the bytes of the tokens joined are the text",
    source="OpenAI OpenAPI: ChatCompletionTokenLogprob.bytes",
    needs="chat_logprobs",
    kills="F38",
    structural=True,
)
async def token_bytes(ctx: Context) -> None:
    compared = 0
    for text in ("Say: 🙂 東京 é", "Count: one two three", "Repeat after me: naïve café 🙂🙂🙂"):
        answer = await ctx.api.chat(text, max_tokens=24, logprobs=True, top_logprobs=1)
        scores = answer.first.scores or []
        parts = [score.data for score in scores]
        if not parts or any(part is None for part in parts):
            raise Inconclusive("the log-probabilities carry no bytes")
        joined = b"".join(part for part in parts if part is not None)
        # The end-of-sequence token has bytes, but is not part of the text; a cut character may be left out.
        whole = answer.text.encode()
        text_now = joined.decode("utf-8", "ignore").encode()
        clean = whole.decode().replace("\ufffd", "").encode()
        ctx.require(
            joined.startswith(whole)
            or text_now.startswith(clean.rstrip())
            or text_now.lstrip().startswith(clean.strip()),
            f"the tokens' bytes join to {joined[:60]!r}, the text is {answer.text[:60]!r}",
        )
        compared += 1
    ctx.need_evidence(compared, "no answer had bytes")


@case(
    "TOK-06",
    "SHOULD",
    "/detokenize gives a text back whose tokens are the same",
    source="vLLM, llama.cpp: /detokenize",
    needs="tokenize detokenize",
    kills="E12",
    oracle="the reference's text, else the way there and back",
    structural=True,
)
async def there_and_back(ctx: Context) -> None:
    checked = 0
    for text in TEXTS:
        ids = await tokenize(ctx.api, text, special=False)
        if not ids:
            continue
        back = await detokenize(ctx.api, ids)
        ctx.require(back is not None, f"/detokenize refuses {len(ids)} tokens that /tokenize gave for {text[:40]!r}")
        if back == text:
            checked += 1
            continue
        due = await detokenize(ctx.reference, ids) if ctx.reference is not None else None
        again = await tokenize(ctx.api, back or "", special=False)
        ctx.require(
            back == due or (due is None and again == ids),
            f"/detokenize makes {(back or '')[:60]!r} of the tokens of {text[:60]!r}"
            f"{'' if due is None else f', the reference {due[:60]!r}'}",
        )
        checked += 1
    ctx.saw(texts=checked)
    ctx.need_evidence(checked, "no text could be tokenized")
