"""Hashing beside reading and writing gives the digest of the very stream, whatever its pieces, and leaves no thread."""

from __future__ import annotations

import hashlib
import itertools
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbus.checkpoint import digest
from hookbus.checkpoint.digest import StreamDigest

CONTENT = bytes(range(256)) * 8


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, len(CONTENT)), max_size=12), st.sampled_from([1, 100, 1 << 22]), st.sampled_from([1, 4, None]))
def test_the_digest_does_not_depend_on_the_pieces(cuts: list[int], batch: int, ahead: int | None) -> None:
    """Empty ones, many small ones, and with or without a thread."""
    edges = [0, *sorted(cuts), len(CONTENT)]
    with pytest.MonkeyPatch.context() as patch, StreamDigest(ahead) as stream:
        patch.setattr(digest, "_BATCH", batch)
        for start, stop in itertools.pairwise(edges):
            stream.update(memoryview(CONTENT)[start:stop])
        assert stream.hexdigest() == hashlib.sha256(CONTENT).hexdigest()
        assert stream.size == len(CONTENT)


def test_a_short_stream_takes_no_thread() -> None:
    """Small checkpoints are hashed where they are."""
    before = threading.active_count()
    with StreamDigest() as stream:
        stream.update(CONTENT)
        assert threading.active_count() == before
        assert stream.hexdigest() == hashlib.sha256(CONTENT).hexdigest()


def test_a_stream_that_breaks_off_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever produces it may fail at any time."""
    monkeypatch.setattr(digest, "_BATCH", 1)
    before = threading.active_count()
    with pytest.raises(OSError, match="the disk is full"), StreamDigest() as stream:
        stream.update(CONTENT)
        assert threading.active_count() == before + 1
        raise OSError("the disk is full")
    assert threading.active_count() == before


def test_without_threads_it_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may start no more of them hashes all the same."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(digest, "_BATCH", 1)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with StreamDigest() as stream:
        stream.update(CONTENT)
        assert stream.hexdigest() == hashlib.sha256(CONTENT).hexdigest()
