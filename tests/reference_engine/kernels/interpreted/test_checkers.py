"""The fixtures can fail: planted faults of each kind are reported."""

from __future__ import annotations

import memory_check
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError


@triton.jit
def copy_too_much_kernel(target_ptr, source_ptr, COUNT: tl.constexpr):
    offs = tl.arange(0, COUNT)
    tl.store(target_ptr + offs, tl.load(source_ptr + offs))


@triton.jit
def write_everywhere_kernel(target_ptr):
    tl.store(target_ptr + tl.arange(0, 4), tl.program_id(0))


@triton.jit
def read_the_neighbour_kernel(target_ptr):
    program = tl.program_id(0)
    tl.store(target_ptr + program, tl.load(target_ptr + 1 - program))


@triton.jit
def add_bfloat16_kernel(target_ptr):
    offs = tl.arange(0, 4)
    tl.store(target_ptr + offs, tl.load(target_ptr + offs) + tl.load(target_ptr + offs))


@triton.jit
def dot_bfloat16_kernel(target_ptr, a_ptr, b_ptr):
    offs = tl.arange(0, 16)
    square = offs[:, None] * 16 + offs[None, :]
    product = tl.dot(tl.load(a_ptr + square), tl.load(b_ptr + square))
    tl.store(target_ptr + square, product.to(tl.bfloat16))


@pytest.mark.parametrize("where", ["source", "target"])
def test_one_element_past_the_end_is_seen(where: str) -> None:
    full, short = torch.zeros(16), torch.zeros(16)[:15]
    source, target = (short, full) if where == "source" else (full, short)
    with pytest.raises(InterpreterError, match=r"OutOfBoundsError.*1 of 16"):
        copy_too_much_kernel[(1,)](target, source, COUNT=16)


def test_two_writers_are_seen() -> None:
    with pytest.raises(memory_check.RaceError, match="two programs write"):
        write_everywhere_kernel[(2,)](torch.zeros(4, dtype=torch.int32))


def test_a_read_of_what_another_program_writes_is_seen() -> None:
    with pytest.raises(memory_check.RaceError, match="reads what another"):
        read_the_neighbour_kernel[(2,)](torch.zeros(2))


def test_arithmetic_on_bfloat16_is_refused() -> None:
    with pytest.raises(InterpreterError, match="widen to float32"):
        add_bfloat16_kernel[(1,)](torch.ones(4, dtype=torch.bfloat16))


def test_bfloat16_products_round_to_nearest() -> None:
    a, b = (torch.randn(16, 16).to(torch.bfloat16) for _ in range(2))
    target = torch.empty(16, 16, dtype=torch.bfloat16)
    dot_bfloat16_kernel[(1,)](target, a, b)
    assert torch.equal(target, (a.float() @ b.float()).to(torch.bfloat16))
