"""The tests that sampled answers are judged by, beside scipy's own forms of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import fisher_exact

from harness.conformance.stats import fisher_high


@given(trials=st.integers(1, 150), data=st.data())
def test_fisher_high_is_fishers_exact_test(trials: int, data: st.DataObject) -> None:
    first, second = (data.draw(st.integers(0, trials)) for _ in range(2))
    table = [[first, trials - first], [second, trials - second]]
    assert fisher_high(first, second, trials) == pytest.approx(
        fisher_exact(table, alternative="greater").pvalue, abs=1e-9
    )
