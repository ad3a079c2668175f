"""``mixed``: requests of several workloads in one load, drawn by weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, ClassVar

from workloads.request import Load, RequestSpec, WorkloadError
from workloads.tokens import TokenCounter
from workloads.workload import Endpoint, Workload

DEFAULT_PARTS = ("chat*0.7", "long-output*0.2", "shared-prefix*0.1")


@dataclass(frozen=True, slots=True)
class Mixed:
    """Parameters of ``mixed``.  A part is ``name*weight``; in YAML also a mapping with ``name``, ``weight`` and
    ``parameters``.
    """

    name: ClassVar[str] = "mixed"

    parts: tuple[Any, ...] = DEFAULT_PARTS
    concurrency: int = 8
    endpoint: Endpoint = "chat"  # of parts that do not say
    _made: tuple[tuple[Workload, float], ...] = field(default=(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.parts:
            raise WorkloadError("workload mixed needs parts, such as parts=chat*0.7+long-output*0.3")
        object.__setattr__(self, "_made", tuple(read_part(part) for part in self.parts))

    def loads(self) -> tuple[Load, ...]:
        return (Load("closed", concurrency=self.concurrency),)

    def requests(
        self, count: int, seed: int, counter: TokenCounter, max_model_len: int | None = None
    ) -> tuple[RequestSpec, ...]:
        """Whole conversations are drawn, so that their turns stay together; ``count`` requests in all."""
        random = Random(f"{self.name}/{seed}")
        workloads, weights = zip(*self._made, strict=True)
        pools = [
            conversations(workload.requests(count, seed + number, counter, max_model_len))
            for number, workload in enumerate(workloads)
        ]
        requests: list[RequestSpec] = []
        talk = 0
        while len(requests) < count:
            pool = random.choices(pools, weights)[0]
            turns = next(pool)
            moved = {turn.index: len(requests) + place for place, turn in enumerate(turns)}
            requests.extend(self._moved(turn, moved, talk) for turn in turns[: count - len(requests)])
            talk += 1
        return tuple(requests)

    @staticmethod
    def _moved(turn: RequestSpec, moved: Mapping[int, int], talk: int) -> RequestSpec:
        """The request at its place among all."""
        return replace(
            turn,
            index=moved[turn.index],
            after=None if turn.after is None else moved[turn.after],
            answers=tuple((position, moved[index]) for position, index in turn.answers),
            conversation=None if turn.conversation is None else talk,
            at_ns=None,
        )


def conversations(requests: tuple[RequestSpec, ...]) -> Iterator[list[RequestSpec]]:
    """Requests in groups: the turns of one conversation, or a lone request."""
    group: list[RequestSpec] = []
    for request in requests:
        if group and (request.conversation is None or request.conversation != group[0].conversation):
            yield group
            group = []
        group.append(request)
    if group:
        yield group


def read_part(part: Any) -> tuple[Workload, float]:
    """A part and its weight.  Raises WorkloadError."""
    from workloads.registry import make_workload

    if isinstance(part, Mapping):
        unknown = set(part) - {"name", "weight", "parameters"}
        if unknown or "name" not in part:
            raise WorkloadError("workload mixed: a part has the keys name, weight and parameters")
        name, weight, values = str(part["name"]), part.get("weight", 1), part.get("parameters") or {}
    else:
        name, star, weight = str(part).partition("*")
        values = {}
        weight = weight if star else 1
    try:
        number = float(weight)
    except (TypeError, ValueError):
        raise WorkloadError(f"workload mixed: the weight of {name!r} must be a number, not {weight!r}") from None
    if not 0 < number < float("inf"):
        raise WorkloadError(f"workload mixed: the weight of {name!r} must be above 0, not {weight}")
    if name.strip() in ("mixed", "trace"):
        raise WorkloadError(f"workload mixed: {name.strip()!r} cannot be a part")
    return make_workload(name.strip(), values), number
