"""Make Triton's interpreter compute what a GPU computes where it is known not to.

- bfloat16 is kept as its bits: ``tl.dot`` on it gives garbage and float32 -> bfloat16 truncates.  Both are repaired;
every
  other arithmetic on bfloat16 raises, since kernels must do it in float32.
- Casts to float8 e4m3 are wrong where rounding crosses a power of two, and never saturate.  torch does them instead.
- A loop bound that is a tensor fails with numpy >= 2.4 on Triton 3.6.

And one repair of its speed: a device function's call patches all of ``triton.language`` anew, though the launch has
done so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

TORCH_TYPES = {tl.bfloat16: torch.bfloat16, tl.float8e4nv: torch.float8_e4m3fn, tl.float8e5: torch.float8_e5m2}
BITS = {
    tl.bfloat16: (torch.uint16, np.uint16),
    tl.float8e4nv: (torch.uint8, np.uint8),
    tl.float8e5: (torch.uint8, np.uint8),
}


def widen(handle: Any) -> np.ndarray:
    """A handle's values, bfloat16 bits as float32."""
    if handle.dtype.scalar == tl.bfloat16:
        return (handle.data.astype(np.uint32) << 16).view(np.float32)
    return handle.data


def narrow(values: np.ndarray, target: Any) -> np.ndarray:
    """float values rounded to ``target`` by torch, as the interpreter's bits."""
    torch_bits, numpy_bits = BITS[target]
    rounded = torch.from_numpy(np.ascontiguousarray(values)).to(TORCH_TYPES[target])
    return rounded.view(torch_bits).numpy().view(numpy_bits)


def install() -> None:
    """Patch the interpreter of this process.  Call once, before any launch."""
    builder, handle_type = interpreter.InterpreterBuilder, interpreter.TensorHandle
    dot, cast, float_cast = builder.create_dot, builder.cast_impl, builder.create_fp_to_fp

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        if tl.bfloat16 in (a.dtype.scalar, b.dtype.scalar):
            return handle_type(np.matmul(widen(a), widen(b), dtype=np.float32) + d.data, d.dtype.scalar)
        return dot(self, a, b, d, *rest)

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        if target.scalar in BITS and source.dtype.scalar in (tl.float16, tl.float32, tl.float64):
            return handle_type(narrow(source.data, target.scalar), target.scalar)
        return cast(self, source, target)

    def create_fp_to_fp(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        if target.scalar in BITS and source.dtype.scalar in (tl.float16, tl.float32, tl.bfloat16):
            return handle_type(narrow(widen(source), target.scalar), target.scalar)
        return float_cast(self, source, target, rounding)

    builder.create_dot, builder.cast_impl, builder.create_fp_to_fp = create_dot, cast_impl, create_fp_to_fp
    for name in ("binary_op", "unary_op", "ternary_op"):
        setattr(builder, name, loud(getattr(builder, name)))

    patch_tensor = interpreter._patch_lang_tensor

    def patch_with_index(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = patch_with_index
    patch_language, run = interpreter._patch_lang, interpreter.GridExecutor.__call__
    launching = False

    def patch_unless_launching(function: Any) -> Any:
        return interpreter._LangPatchScope() if launching else patch_language(function)

    def run_launch(self: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal launching
        scopes = [patch_language(self.fn), patch_language(tl.sum.fn)]  # the kernel's names, and the standard library's
        launching = True
        try:
            run(self, *args, **kwargs)
        finally:
            launching = False
            for scope in reversed(scopes):
                scope.restore()

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_unless_launching, run_launch
    object.__setattr__(interpreter.interpreter_builder.options, "debug", True)


def loud(operation: Any) -> Any:
    """``operation``, but arithmetic on bfloat16 bits raises instead of giving garbage.  Selection is right on bits."""

    def checked(self: Any, *operands: Any) -> Any:
        handles, op = operands[:-1], operands[-1]
        if op is not np.where and any(h.dtype.scalar == tl.bfloat16 for h in handles):
            raise TypeError(f"{getattr(op, '__name__', op)} on bfloat16: widen to float32 first")
        return operation(self, *operands)

    return checked
