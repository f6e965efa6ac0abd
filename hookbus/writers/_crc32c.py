"""The checksum that event files carry, CRC-32C, without a loop over bytes.

It is linear: the checksum of some data is the exclusive or of what each byte contributes, which depends on the byte and on
how many bytes come behind it. So a table of contributions is all it takes; it grows with the longest data seen.
"""

from __future__ import annotations

__all__ = ("Crc32c",)

from typing import Any

import numpy as np
import numpy.typing as npt

Registers = npt.NDArray[np.uint32]

_POLYNOMIAL, _ONE = np.uint32(0x82F63B78), np.uint32(1)
_ALL_ONES = 0xFFFFFFFF


class Crc32c:
    """Computes checksums, and keeps what it needs for each length of data."""

    def __init__(self) -> None:
        self._contributions = _contributions_of_a_last_byte()
        """256 for each number of bytes that come behind."""
        self._by_length: dict[int, tuple[npt.NDArray[Any], int]] = {}

    def masked(self, data: bytes) -> int:
        """Return the checksum in the form that event files use: rotated, and a constant added."""
        rows, of_the_length = self._by_length.get(len(data)) or self._prepare(len(data))
        contributions = self._contributions[rows + np.frombuffer(data, np.uint8)]
        checksum = int(np.bitwise_xor.reduce(contributions)) ^ of_the_length
        return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & _ALL_ONES

    def _prepare(self, length: int) -> tuple[npt.NDArray[Any], int]:
        """Return where the contributions of each byte begin, and what the length contributes whatever the bytes are."""
        while len(self._contributions) < 256 * length:
            further = self._before_a_zero(self._contributions[-256:])
            self._contributions = np.concatenate([self._contributions, further])
        start = np.array([_ALL_ONES], np.uint32)
        for _ in range(length):
            start = self._before_a_zero(start)
        rows = 256 * np.arange(length - 1, -1, -1)
        return self._by_length.setdefault(length, (rows, int(start[0]) ^ _ALL_ONES))

    def _before_a_zero(self, registers: Registers) -> Registers:
        """Return what registers become when one more byte, a zero, comes behind."""
        shifted: Registers = self._contributions[registers & 255] ^ registers >> 8
        return shifted


def _contributions_of_a_last_byte() -> Registers:
    registers: Registers = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        registers = registers >> _ONE ^ _POLYNOMIAL * (registers & _ONE)
    return registers
