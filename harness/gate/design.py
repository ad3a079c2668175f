"""In which order the runs of a gate are made: interleaved pairs, ABBA or BAAB, turned by a stored seed.

::

    seed -> block 0      block 1      block 2 ...
            A B | B A    B A | A B    A B | B A         A = baseline, B = candidate
            pair 0  1    pair 2  3    pair 4  5

Within a block each build is once first and once second, so that a linear drift of the machine cancels; which of the two
shapes a block has is drawn, so that nothing periodic on the machine can favour one build.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Order = Literal["AB", "BA"]


def orders_of(seed: int, pairs: int) -> list[Order]:
    """The order of each pair.  The first pairs do not depend on how many will follow."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 2, (pairs + 1) // 2).tolist()
    orders: list[Order] = [order for turned in blocks for order in (("BA", "AB") if turned else ("AB", "BA"))]
    return orders[:pairs]
