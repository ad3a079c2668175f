"""Make ``smollm2_greedy.json``: what transformers generates, greedily and in fp32, from the embedded model's weights.

    python tests/golden/make_golden.py

The reference is ``transformers`` alone: it reads the same GGUF file with its own loader and runs ``generate`` one
prompt at a time.  End-of-sequence tokens are neither suppressed nor obeyed (generation goes on past them), as with
``ignore_eos`` in the engine.  Stored for each prompt: its token ids, the 64 greedy ids, and at each position the two
best ids with their logits.  Where the two differ by less than 0.01 another correct engine may choose the other one; the
test judges those positions by the logits.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM

from reference_engine.models.embedded import SHA256, ensure_embedded_model
from reference_engine.models.loader import load_model

OUT = Path(__file__).with_name("smollm2_greedy.json")
NEW_TOKENS = 64

CHATS = (
    "What is the capital of France?",
    "Write a haiku about memory.",
    "Explain what a page table is, in two sentences.",
    "List three prime numbers greater than 50.",
    "Translate 'good morning' into Spanish, French and German.",
    "Who wrote Pride and Prejudice?",
    "Give me a recipe for pancakes.",
    "Why is the sky blue?",
    "Summarise the plot of Romeo and Juliet.",
    "What is 17 * 23? Show your steps.",
    "Write a Python function that reverses a string.",
    "How do I boil an egg?",
)
TEXTS = (
    "Once upon a time",
    "The",
    "def fibonacci(n):\n    ",
    "1, 2, 3, 5, 8, 13,",
    "Q: What is the largest planet?\nA:",
    "In a distributed system, consensus means that",
    "SELECT name, COUNT(*) FROM users",
    "Dear Sir or Madam,\n\nI am writing to",
    "El perro corre por el parque y",
    "The quick brown fox jumps over the lazy dog. " * 6,
    "Water boils at 100 degrees Celsius at sea level, but on a high mountain",
    "import numpy as np\n\nx = np.array([1, 2, 3])\n",
    "∑ and ∏ are used in mathematics to",
    "日本の首都は",
    "It was the best of times, it was the worst of times, it was the age of wisdom,",
    "\t\tif (x > 0) {\n\t\t\treturn",
)
LONG = (
    "A block table maps the logical blocks of a sequence to physical blocks. ",
    "The scheduler admits a request when enough free blocks remain for its prompt. ",
    "Every number in this report was measured, and every chart can be rebuilt. ",
    "The river ran past the mill, under the bridge, and on towards the sea. ",
)


def prompts() -> list[list[int]]:
    """32 prompts of 1 to about 300 tokens; chats share the template's system prompt, so prefixes can be cached."""
    tokenizer = load_model("smollm2", dtype=torch.float32, device=torch.device("cpu")).tokenizer
    chats = [tokenizer.render_chat([{"role": "user", "content": text}]) for text in CHATS]
    long = [text * count for text, count in zip(LONG, (8, 12, 16, 20), strict=True)]
    return [tokenizer.encode(text) for text in [*chats, *TEXTS, *long]]


def main() -> None:
    path = ensure_embedded_model()
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    cases = []
    for ids in prompts():
        output = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        best = torch.stack([step[0] for step in output.logits]).topk(2)
        generated = output.sequences[0, len(ids) :].tolist()
        assert generated == best.indices[:, 0].tolist()
        assert len(generated) == NEW_TOKENS
        cases.append(
            {
                "prompt": ids,
                "tokens": generated,
                "second": best.indices[:, 1].tolist(),
                "logits": [[round(a, 5), round(b, 5)] for a, b in best.values.tolist()],
            }
        )
        print(f"{len(cases):2} {len(ids):4} tokens, smallest gap {min(a - b for a, b in best.values.tolist()):.4f}")
    header = {
        "model_sha256": SHA256,
        "made_with": f"transformers {transformers.__version__}, torch {torch.__version__}, {platform.machine()}",
    }
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    OUT.write_text(f'{{"about": {json.dumps(header)},\n"cases": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
