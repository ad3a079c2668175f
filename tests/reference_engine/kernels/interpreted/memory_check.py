"""Every load and store of every interpreted launch, checked: inside an argument, and no two programs in conflict.

The interpreter runs programs one after another, so a race never shows in its results, and a read just past a tensor
returns whatever is there.  Here each launch notes the bytes of its tensor arguments (of the views, not of their
storage), and what each program reads and writes.  Atomics are not seen; the kernels use none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from triton.runtime import interpreter


class OutOfBoundsError(Exception):
    """A load or store touched an address outside all tensor arguments."""


class RaceError(Exception):
    """Two programs of one launch touched the same address and at least one of them wrote."""


class Launch:
    """One launch under watch."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.accesses: dict[str, list[tuple[int, np.ndarray]]] = {"load": [], "store": []}

    def allow(self, tensor: Any) -> None:
        """The bytes from the view's first to its last element may be touched."""
        if tensor.numel():
            last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            self.starts.append(tensor.data_ptr())
            self.ends.append(tensor.data_ptr() + (last + 1) * tensor.element_size())

    def touch(self, kind: str, program: int, addresses: np.ndarray, width: int) -> None:
        """A program loads or stores ``width`` bytes at each address."""
        inside = np.zeros(addresses.shape, dtype=bool)
        for start, end in zip(self.starts, self.ends, strict=True):
            inside |= (addresses >= start) & (addresses + width <= end)
        if not inside.all():
            outside = int((~inside).sum())
            raise OutOfBoundsError(
                f"{kind} of program {program}: {outside} of {inside.size} addresses are in no argument"
            )
        self.accesses[kind].append((program, addresses))

    def finish(self) -> None:
        """Look for conflicts between programs."""
        if not self.accesses["store"]:
            return
        stored, writers = self._flat("store")
        order = np.argsort(stored, kind="stable")
        stored, writers = stored[order], writers[order]
        same = stored[1:] == stored[:-1]
        if (same & (writers[1:] != writers[:-1])).any():
            raise RaceError("two programs write the same address")
        if self.accesses["load"]:
            loaded, readers = self._flat("load")
            at = np.minimum(np.searchsorted(stored, loaded), stored.size - 1)
            if ((stored[at] == loaded) & (writers[at] != readers)).any():
                raise RaceError("a program reads what another one writes")

    def _flat(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        parts = self.accesses[kind]
        return (
            np.concatenate([addresses for _, addresses in parts]),
            np.concatenate([np.full(addresses.shape, program) for program, addresses in parts]),
        )


current: Launch | None = None


def install() -> None:
    """Watch all launches of this process."""
    executor, builder = interpreter.GridExecutor, interpreter.InterpreterBuilder
    prepare, run = executor._init_args_hst, executor.__call__
    load, store = builder.create_masked_load, builder.create_masked_store

    def init_args(self: Any, args: Any, kwargs: Any) -> Any:
        hosted = prepare(self, args, kwargs)
        for value in (*hosted[0], *hosted[1].values()):
            if hasattr(value, "data_ptr") and current is not None:
                current.allow(value)
        return hosted

    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        global current
        current = Launch()
        try:
            run(self, *args, **kwargs)
            current.finish()
        finally:
            current = None

    def watch(kind: str, builder_self: Any, pointers: Any, mask: Any) -> None:
        x, y, z = builder_self.grid_idx
        addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].astype(np.int64)
        width = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        if current is not None:
            current.touch(kind, (x * 65536 + y) * 65536 + z, addresses, width)

    def masked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        watch("load", self, pointers, mask)
        return load(self, pointers, mask, *rest)

    def masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        watch("store", self, pointers, mask)
        return store(self, pointers, value, mask, *rest)

    executor._init_args_hst, executor.__call__ = init_args, call
    builder.create_masked_load, builder.create_masked_store = masked_load, masked_store
