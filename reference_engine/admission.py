"""What is refused before it enters the queue because it could never run."""

from __future__ import annotations

from reference_engine.config import SchedulerConfig
from reference_engine.request import Request, RequestRejected


def check_request(request: Request, config: SchedulerConfig) -> None:
    """Raise RequestRejected (400, naming the field) for a malformed request or one beyond the configured limits.

    Nothing is clamped: a request runs as it was asked, or not at all.
    """
    params = request.params
    if not request.prompt:
        raise RequestRejected("the prompt is empty; send at least one token", param="prompt")
    if params.max_tokens < 1:
        raise RequestRejected(f"max_tokens must be at least 1, not {params.max_tokens}", param="max_tokens")
    if params.n < 1:
        raise RequestRejected(f"n must be at least 1, not {params.n}", param="n")
    if params.beam_width and params.n > params.beam_width:
        raise RequestRejected(f"n={params.n} is more than the beam's width {params.beam_width}", param="n")
    if params.beam_width > config.max_num_seqs:
        raise RequestRejected(
            f"a beam of {params.beam_width} exceeds the {config.max_num_seqs} sequences that run at once",
            param="best_of",
        )
    if params.n > config.max_num_seqs:
        raise RequestRejected(f"n={params.n} exceeds the {config.max_num_seqs} sequences that run at once", param="n")
    total = len(request.prompt) + params.max_tokens
    if total > config.max_model_len:
        prompt_alone = len(request.prompt) >= config.max_model_len
        raise RequestRejected(
            f"prompt ({len(request.prompt)} tokens) + max_tokens ({params.max_tokens}) is {total}, "
            f"more than the context length of {config.max_model_len}",
            param="prompt" if prompt_alone else "max_tokens",
        )
