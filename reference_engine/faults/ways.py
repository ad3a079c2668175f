"""Which values of a fault's parameters make another fault of it, as ``--inject-fault ID:WAY`` takes them.

The proof of a suite draws each as a row of its own: a case may kill one and not the other.
"""

from __future__ import annotations

WAYS: dict[str, tuple[str, ...]] = {
    "F17": ("where=chunk",),
    "F27": ("how=ignored",),
    "F30": ("how=shared",),
    "F31": ("how=shared", "how=leaked"),
    "F34": ("how=early",),
    "F39": ("how=lost",),
    "F40": ("how=usage",),
    "F43": ("how=index",),
    "F46": ("how=500",),
    "F49": ("how=bos", "how=list"),
    "F60": ("how=falling",),
    "E5": ("how=time",),
    "E6": ("how=on",),
    "E12": (
        "field=min_p",
        "field=min_tokens",
        "field=repetition_penalty",
        "field=stop_token_ids",
        "field=include_stop_str_in_output",
        "field=use_beam_search",
        "field=prompt_logprobs",
    ),
}
