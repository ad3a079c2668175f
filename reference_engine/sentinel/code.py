"""Names for 4,096 tokens that cannot be taken for one another: the words of the extended binary Golay code.

The code has exactly 4,096 words of 24 bits, any two of which differ in at least 8.  As vectors of +1 and -1 a word
scores 24 with itself and at most 8 with any other, so a dot product recognises it with a margin of 16.  It is linear
and contains the word of ones: the complement of word ``i`` is word ``4095 - i``, and scores -24 with it.

The code is systematic: the first 12 bits of word ``i`` are the binary digits of ``i``.
"""

from __future__ import annotations

import numpy as np

LENGTH = 24
INFO_BITS = 12
NUM_WORDS = 1 << INFO_BITS

# Squares modulo 11 (and 0): the code is built from the quadratic residues of 11.
_RESIDUES = frozenset({0, 1, 3, 4, 5, 9})


def _parity() -> np.ndarray:
    """The right half ``[12, 12]`` of the generator matrix [identity | parity]."""
    matrix = np.ones((INFO_BITS, INFO_BITS), dtype=np.int64)
    matrix[INFO_BITS - 1, INFO_BITS - 1] = 0
    for row in range(INFO_BITS - 1):
        for column in range(INFO_BITS - 1):
            matrix[row, column] = (row + column) % 11 in _RESIDUES
    return matrix


def code_words() -> np.ndarray:
    """All words as +1 (bit 1) and -1 (bit 0), float32 ``[4096, 24]``; row ``i`` is word ``i``."""
    info = (np.arange(NUM_WORDS)[:, None] >> np.arange(INFO_BITS)[None, :]) & 1
    bits = np.concatenate([info, info @ _parity() % 2], axis=1)
    return (2 * bits - 1).astype(np.float32)
