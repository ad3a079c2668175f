"""A case: what it is about, what it needs, and the function that finds out.

::

    @case("API-04", "MUST", "the token limit is exact", source="OpenAPI: max_tokens", needs="completions", kills="F44 F34")
    async def limit_is_exact(ctx: Context) -> None:
        ...

The function returns when the property held, or raises one of the four outcomes below.  Ids are never reused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.results.conformance import Level

if TYPE_CHECKING:
    from harness.conformance.context import Context

FAMILIES: dict[str, str] = {
    "API": "API shape",
    "STR": "Streaming",
    "TOK": "Tokens and templates",
    "SMP": "Sampling",
    "LGP": "Logprobs",
    "NUM": "Attention and positions",
    "BAT": "Batching and isolation",
    "PFX": "Prefix cache",
    "PRE": "Pressure, preemption, scheduling",
    "LIF": "Lifecycle",
    "ERR": "Errors",
    "MET": "Metrics",
    "MEM": "Memory",
    "INT": "Integrity of the measured run",
}


class Outcome(Exception):
    """Ends a case with a verdict other than PASS.  ``evidence`` is plain data for the report."""

    def __init__(self, reason: str, **evidence: Any) -> None:
        super().__init__(reason)
        self.reason = reason
        self.evidence = evidence


class Failed(Outcome):
    """The property was exercised and broken."""


class NonStrict(Outcome):
    """A deviation that the case's clause allows."""


class Unsupported(Outcome):
    """The engine does not offer what the case needs."""


class Inconclusive(Outcome):
    """What the case is about did not happen."""


class NoAnswer(Failed):
    """The engine gave no HTTP answer at all: refused, cut or too late."""


Body = Callable[["Context"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Case:
    """One declared case.  ``needs`` names features of the probe; ``kills`` ids of the fault catalogue."""

    id: str
    level: Level
    title: str
    source: str
    needs: tuple[str, ...]
    oracle: str
    evidence: str
    kills: tuple[str, ...]
    structural: bool
    soak: bool
    limit_s: float
    body: Body

    @property
    def family(self) -> str:
        return self.id.partition("-")[0]

    @property
    def needs_hooks(self) -> bool:
        """Whether only an engine with our debug endpoints can be asked."""
        return any(need.startswith("debug") for need in self.needs)


REGISTRY: dict[str, Case] = {}


def case(
    id: str,
    level: Level,
    title: str,
    *,
    source: str,
    needs: str = "",
    kills: str = "",
    oracle: str = "structural",
    evidence: str = "",
    structural: bool = False,
    soak: bool = False,
    limit_s: float = 180.0,
) -> Callable[[Body], Body]:
    """Declare the decorated coroutine as a case.  ``structural`` puts it into the fast subset, ``soak`` out of the default.

    ``limit_s`` ends the case when it takes longer [s].
    """

    def declare(body: Body) -> Body:
        if id in REGISTRY:
            raise ValueError(f"case {id} is declared twice")
        if id.partition("-")[0] not in FAMILIES:
            raise ValueError(f"case {id} belongs to no family")
        REGISTRY[id] = Case(
            id=id,
            level=level,
            title=title,
            source=source,
            needs=tuple(needs.split()),
            oracle=oracle,
            evidence=evidence,
            kills=tuple(kills.split()),
            structural=structural,
            soak=soak,
            limit_s=limit_s,
            body=body,
        )
        return body

    return declare
