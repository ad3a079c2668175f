"""The changes that the suite is tried against: one each, repeatable, in code that runs."""

from __future__ import annotations

import ast
import difflib
import random

import pytest

from tests.harness.conformance.random_mutants import MODULES, PACKAGE, ROOT, mutant, mutate

SOURCE = '''
def share(used: int, total: int = 4) -> float:
    """Part 1 of 2."""
    if not total or used < 0:
        raise ValueError(f"{used} of {total + 0}")
    count = min(used, 10)
    print(count)
    return count / total
'''


def lines_apart(before: str, after: str) -> int:
    return sum(line[0] == "+" for line in difflib.ndiff(before.splitlines(), after.splitlines()))


def test_a_mutant_differs_in_one_place_and_not_in_words() -> None:
    plain = ast.unparse(ast.parse(SOURCE))
    seen = {mutate(plain, random.Random(seed)) for seed in range(200)}
    assert None not in seen
    changed = {text for text in seen if text is not None}
    assert len(changed) >= 7
    for text in changed:
        assert lines_apart(plain, text) == 1
        assert "Part 1 of 2." in text
        assert "{total + 0}" in text


def test_where_nothing_runs_nothing_changes() -> None:
    assert mutate("NAME = 1\n", random.Random(0)) is None


@pytest.mark.parametrize("seed", range(5))
def test_a_seed_is_a_mutant(seed: int) -> None:
    module, plain, new = mutant(seed)
    assert (module, plain, new) == mutant(seed)
    ast.parse(new)
    assert lines_apart(plain, new) <= 2


def test_all_modules_are_there() -> None:
    assert [module for module in MODULES if not (ROOT / PACKAGE / module).is_file()] == []
