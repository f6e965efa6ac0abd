"""The checksum that event files carry, CRC-32C, without a loop over bytes.

It is linear: the checksum of some data is the exclusive or of what each byte contributes, which depends on the byte and on
how many bytes come behind it. So a table of contributions is all it takes; longer data is taken in pieces, of which each
begins with what the ones before it left.
"""

from __future__ import annotations

__all__ = ("Crc32c",)

import functools
import struct

import numpy as np
import numpy.typing as npt

Registers = npt.NDArray[np.uint32]

PIECE = 1024
"""Bytes that are taken at once."""
_POLYNOMIAL, _ONE = np.uint32(0x82F63B78), np.uint32(1)
_ALL_ONES = 0xFFFFFFFF
_ROWS = 256 * np.arange(PIECE - 1, -1, -1)
"""Where the contributions of each byte of a piece begin."""


class Crc32c:
    """Computes checksums."""

    def __init__(self) -> None:
        self._contributions = _contributions()

    def masked(self, data: bytes) -> int:
        """Return the checksum in the form that event files use: rotated, and a constant added."""
        register = _ALL_ONES
        for start in range(0, len(data), PIECE):
            register = self._after(register, np.frombuffer(data[start : start + PIECE], np.uint8).copy())
        checksum = register ^ _ALL_ONES
        return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & _ALL_ONES

    def _after(self, register: int, piece: npt.NDArray[np.uint8]) -> int:
        """Return the register behind a piece, whose first bytes take up what is in it."""
        taken_up = min(4, len(piece))
        piece[:taken_up] ^= np.frombuffer(struct.pack("<I", register), np.uint8)[:taken_up]
        contributed = int(np.bitwise_xor.reduce(self._contributions[_ROWS[PIECE - len(piece) :] + piece]))
        return contributed ^ register >> 8 * taken_up


@functools.cache
def _contributions() -> Registers:
    """Return 256 contributions for each number of bytes that come behind."""
    tables = [_of_a_last_byte()]
    while len(tables) < PIECE:
        registers = tables[-1]
        tables.append(tables[0][registers & 255] ^ registers >> 8)  # one more byte, a zero, comes behind
    return np.concatenate(tables)


def _of_a_last_byte() -> Registers:
    registers: Registers = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        registers = registers >> _ONE ^ _POLYNOMIAL * (registers & _ONE)
    return registers
