"""JsonlWriter: every line is JSON that any program reads."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hookbus.writers import JsonlWriter, Record, RunPlace


def written(tmp_path: Path, **values: Any) -> dict[str, Any]:
    """Return one record as it stands in the file, refusing what JSON does not know."""
    writer = JsonlWriter()
    writer.open(RunPlace(logger=logging.getLogger("tests.writers"), log_dir=tmp_path))
    writer.write(Record(mode="val", epoch=2, iter=6, values=values, text="unused"))
    writer.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found: dict[str, Any] = json.loads(line, parse_constant=pytest.fail)
    return found


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (0.25, 0.25),
        (3, 3),
        (2**70, 2**70),
        (True, True),
        (None, None),
        ("text", "text"),
        (math.nan, None),
        (-math.inf, None),
        ([1.0, math.nan, [math.inf]], [1.0, None, [None]]),
        ((1, 2), [1, 2]),
        ({3}, [3]),
        ({"a": math.nan, 1: {"b": [2]}}, {"a": None, "1": {"b": [2]}}),
        (np.float32(0.5), 0.5),
        (np.float64(math.nan), None),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.array([[1.0, math.nan]]), [[1.0, None]]),
        (torch.tensor([1.0, math.inf]), [1.0, None]),
        (torch.tensor(2), 2),
        (1 + 2j, "(1+2j)"),
        (b"bytes", "b'bytes'"),
    ],
    ids=repr,
)
def test_any_value_has_a_form_in_json(value: Any, read: Any, tmp_path: Path) -> None:
    """Also inside of others; numbers that JSON does not know are null."""
    assert written(tmp_path, value=value)["value"] == read


def test_a_value_named_like_a_counter_does_not_replace_it(tmp_path: Path) -> None:
    """It gets its mode before its name."""
    assert written(tmp_path, iter=0.5, loss=1.0) == {"mode": "val", "epoch": 2, "iter": 6, "val/iter": 0.5, "loss": 1.0}


def test_a_record_after_the_end_is_appended(tmp_path: Path) -> None:
    """Whoever closes a writer may still use it."""
    written(tmp_path, loss=1.0)
    writer = JsonlWriter()
    writer.open(RunPlace(logger=logging.getLogger("tests.writers"), log_dir=tmp_path))
    for _ in range(2):
        writer.write(Record(mode="train", epoch=3, iter=7, values={}, text=""))
        writer.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
