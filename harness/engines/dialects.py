"""From what a probe found to the way the load client speaks to that engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.engines.errors import EngineError
from harness.engines.probe import Probe
from harness.load.dialect import Dialect


def dialect_of(found: Probe, extra_body: Mapping[str, Any] | None = None) -> Dialect:
    """The engine's dialect.  What the probe could not find out is taken to work, as the API's documents say.

    Raises EngineError when the engine named no model: then one has to be given.
    """
    able = found.capabilities
    if found.info.model is None:
        raise EngineError(f"engine {found.info.name!r} lists no model; name the one to ask for")
    return Dialect(
        model=found.info.model,
        ignore_eos=able.ignore_eos != "refused",
        min_tokens=able.min_tokens in ("honoured", "accepted"),
        include_usage=able.stream_options is not False,
        sends_done=able.done_marker is not False,
        extra_body=dict(extra_body or {}),
    )
