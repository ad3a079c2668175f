"""Questions to the sentinel model, whose right answers follow from the prompt alone."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Protocol

from harness.conformance.prompts import Ask


class SentinelAsks(Protocol):
    """Makes questions with one right answer each."""

    def ask(self, rng: random.Random, tokens: int, max_tokens: int, fields: Mapping[str, Any]) -> Ask:
        """A question of about ``tokens`` tokens that is answered in at most ``max_tokens``."""
        ...
