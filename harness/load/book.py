"""The book of schedules: each is made once, the first time it is needed, and is then the same for every engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.load.plan import RunPlan
from harness.load.schedule import Chapter, Schedule, build_schedule, chapters, number_of_requests
from workloads.request import Load
from workloads.tokens import TokenCounter, WordCounter


@dataclass(slots=True)
class ScheduleBook:
    """Schedules by key.  ``counter`` may change from engine to engine; what is in the book stays."""

    plan: RunPlan
    max_model_len: int | None
    counter: TokenCounter
    _made: dict[str, Schedule] = field(default_factory=dict)

    def schedule(self, chapter: Chapter, load: Load, repeat: int, number: int | None = None) -> Schedule:
        """The schedule of one cell.  Raises WorkloadError and CountError.  ``number`` of requests wins over the plan's."""
        key = f"{chapter.key(load)}.{repeat}"
        if key not in self._made:
            wanted, is_pool = number_of_requests(self.plan, chapter.asked, load)
            if number is not None:
                wanted, is_pool = number, False
            self._made[key] = build_schedule(
                key, chapter.workload, load, repeat, wanted, is_pool, self.plan, self.counter, self.max_model_len
            )
        return self._made[key]

    def write_ahead(self) -> None:
        """Make every schedule that is known before the first cell runs."""
        if self.plan.find_max is not None:
            return
        for chapter in chapters(self.plan):
            if not chapter.climbs:
                for load in chapter.loads:
                    for repeat in range(self.plan.repeats):
                        self.schedule(chapter, load, repeat)

    @property
    def inexact(self) -> int:
        """Prompts that could not be made as long as drawn, although a tokenizer counts."""
        if isinstance(self.counter, WordCounter):
            return 0
        return sum(not request.exact for made in self._made.values() for request in made.requests)
