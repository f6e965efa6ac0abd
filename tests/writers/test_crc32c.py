"""The checksum of event files is CRC-32C."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.record_writer import masked_crc32c

from hookbus.writers._crc32c import Crc32c

CRC = Crc32c()
DATA = bytes(number * 7 % 251 for number in range(5000))


def unmasked(checksum: int) -> int:
    """Return the checksum itself."""
    rotated = (checksum - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


def test_the_checksum_of_the_nine_digits_is_the_published_one() -> None:
    """The value by which implementations of CRC-32C are told."""
    assert unmasked(CRC.masked(b"123456789")) == 0xE3069283


@given(st.binary(max_size=300) | st.sampled_from([1023, 1024, 1025, 1026, 1028, 2048, 5000]).map(lambda size: DATA[:size]))
def test_checksums_are_those_of_other_programs(data: bytes) -> None:
    """Whatever the data, in whatever order the lengths come."""
    assert CRC.masked(data) == masked_crc32c(data)
