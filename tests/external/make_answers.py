"""Make ``greedy_answers.json``: greedy continuations by transformers' ``generate`` in fp32, EOS suppressed.

Run with a Python that has torch and transformers::

    python tests/external/make_answers.py $PAGEDBENCH_EXT/models/smollm2-135m-fp32
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(model_dir: str) -> None:
    import torch
    from test_engines import ANSWERS, PROMPTS, TOKENS
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    answers = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        output = model.generate(
            ids, do_sample=False, max_new_tokens=TOKENS, output_logits=True, return_dict_in_generate=True
        )
        gaps = [float(torch.diff(-logits[0].topk(2).values)[0]) for logits in output.logits]
        answers.append(tokenizer.decode(output.sequences[0, ids.shape[1] :]))
        print(f"{prompt!r} -> {answers[-1]!r}; smallest gap between the first two logits {min(gaps):.3f}")
    ANSWERS.write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(sys.argv[1])
