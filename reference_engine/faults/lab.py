"""Where a fault is put into an engine: methods of the built objects are replaced, and can be put back.

The product's code knows nothing of faults.  A fault replaces methods of one engine's objects (or, for the server's
short-lived objects, of their class) after they are built; with none asked for, nothing here is even imported.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reference_engine.faults.registry import Chosen, Value, choose
from reference_engine.plan import StepPlan

if TYPE_CHECKING:
    from reference_engine.request import Sequence
    from reference_engine.server.build import Serving
    from reference_engine.server.options import ServerOptions

_MISSING = object()


@dataclass
class Lab:
    """One fault at work: its engine, its parameters, its count of strikes."""

    chosen: Chosen
    serving: Any = None
    occasions: int = 0
    fired: int = 0
    _undo: list[Callable[[], None]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.random = random.Random(self.chosen.fault.id)

    # --- the subject ---

    @property
    def engine(self) -> Any:
        return self.serving.engine

    @property
    def scheduler(self) -> Any:
        return self.engine.scheduler

    @property
    def kv(self) -> Any:
        return self.scheduler.kv

    @property
    def runner(self) -> Any:
        return self.engine._runner

    @property
    def block_size(self) -> int:
        size: int = self.engine.cache_config.block_size
        return size

    def sequence(self, seq_id: int) -> Sequence | None:
        """An unfinished sequence."""
        found: Sequence | None = self.scheduler.sequences.get(seq_id)
        return found

    # --- striking ---

    def fires(self) -> bool:
        """Whether the fault strikes on this occasion; counts both."""
        with self._lock:
            self.occasions += 1
            most = int(self.value("most"))
            if self.occasions <= int(self.value("skip")) or (most and self.fired >= most):
                return False
            if self.random.random() >= self.number("rate"):
                return False
            self.fired += 1
            return True

    def value(self, name: str) -> Value:
        return self.chosen.parameters[name]

    def number(self, name: str) -> float:
        return float(self.chosen.parameters[name])

    # --- replacing ---

    def wrap(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Replace ``owner.name`` by ``make(what it was)``.  An object's method comes bound, a class's as a function."""
        before = vars(owner).get(name, _MISSING)
        setattr(owner, name, make(getattr(owner, name)))
        self._undo.append(lambda: delattr(owner, name) if before is _MISSING else setattr(owner, name, before))

    def before_step(self, change: Callable[[StepPlan], StepPlan]) -> None:
        """Let ``change`` edit every plan (and the KV pool) before the runner computes it."""
        self.wrap(self.runner, "execute", lambda execute: lambda plan: execute(plan if plan.is_empty else change(plan)))

    def tolerate_lost_blocks(self) -> None:
        """Silence the engine's own bookkeeping alarms, which would end the process before anybody saw the fault, and
        let the KV gauge say what the pool counts, as engines without a ledger do."""
        from reference_engine.kv.ledger import LedgerSnapshot

        self.wrap(LedgerSnapshot, "check", lambda check: lambda snapshot: None)
        pool, size = self.kv.pool, self.block_size

        def make(stats: Callable[[], Any]) -> Callable[[], Any]:
            def counted() -> Any:
                found = stats()
                found.values["kv_slots_allocated"] = pool.num_held * size
                found.values["kv_usage"] = pool.num_held / pool.num_blocks
                return found

            return counted

        self.wrap(self.engine, "stats", make)

    def remove(self) -> None:
        """Put everything back, last change first."""
        while self._undo:
            self._undo.pop()()


class Injection:
    """The faults of one server."""

    def __init__(self, chosen: list[Chosen]) -> None:
        self.labs = [Lab(one) for one in chosen]

    @classmethod
    def parse(cls, faults: tuple[str, ...], benign: tuple[str, ...] = ()) -> Injection:
        """From the command line's values.  Raises ConfigError."""
        return cls([*(choose(text) for text in faults), *(choose(text, "benign") for text in benign)])

    def options(self, options: ServerOptions) -> ServerOptions:
        """The server's options as the chosen variants want them."""
        for lab in self.labs:
            if lab.chosen.fault.options is not None:
                options = lab.chosen.fault.options(options, lab.chosen.parameters)
        return options

    def before_build(self) -> None:
        for lab in self.labs:
            if lab.chosen.fault.early is not None:
                lab.chosen.fault.early(lab)

    def build(self, options: ServerOptions) -> Serving:
        """A broken engine, ready to serve.  Raises ConfigError or ModelLoadError."""
        from reference_engine.server.build import build

        self.before_build()
        serving = build(options)
        self.into(serving)
        return serving

    def into(self, serving: Serving) -> None:
        """Put the faults into a built engine, before it serves.  Raises ConfigError if one cannot be."""
        for lab in self.labs:
            lab.serving = serving
            if lab.chosen.fault.install is not None:
                lab.chosen.fault.install(lab)

    def remove(self) -> None:
        for lab in reversed(self.labs):
            lab.remove()

    def report(self) -> list[dict[str, object]]:
        """What ``GET /debug/faults`` shows."""
        return [
            {
                "id": lab.chosen.fault.id,
                "title": lab.chosen.fault.title,
                "kind": lab.chosen.fault.kind,
                "parameters": dict(lab.chosen.parameters),
                "occasions": lab.occasions,
                "fired": lab.fired,
            }
            for lab in self.labs
        ]
