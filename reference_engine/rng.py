"""Counter-based random numbers: a draw is a pure function of (seed, continuation index, position).

Nothing is carried from one token to the next, so the same seed gives the same draw whatever else is in the batch, in
whatever order rows are processed, after a preemption, and on any device.  The bits come from the SplitMix64 finaliser
(Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), once for each word of the key.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S12 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(12)
_MASK_64 = (1 << 64) - 1
# 52 bits, not 53: then u * total stays strictly below total after rounding, and the last outcome is never overshot.
_UNIT = 2.0**-52

Words = NDArray[np.uint64]


def splitmix64(state: Words) -> Words:
    """The SplitMix64 output for each 64-bit ``state``, wrapping as unsigned integers do."""
    z = state + _GOLDEN
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


def uniforms(seeds: Sequence[int], indices: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    """One number in [0, 1) for each key ``(seeds[i], indices[i], positions[i])``, float64 ``[len(seeds)]``.

    Seeds may be any integers; they count modulo 2**64.
    """
    word = splitmix64(np.array([seed & _MASK_64 for seed in seeds], dtype=np.uint64))
    word = splitmix64(word ^ np.array(indices, dtype=np.uint64))
    word = splitmix64(word ^ np.array(positions, dtype=np.uint64))
    return (word >> _S12).astype(np.float64) * _UNIT
