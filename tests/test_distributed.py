"""What processes do together: alone nothing, two of them the same; with real processes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hookbus.distributed import agree, average, is_main_process, rank, world_size
from tests.hooks.test_early_stopping import Scores, make

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")

AGREED: tuple[tuple[float | None, float | None], ...] = ((0.5, 0.7), (None, 0.7), (0.5, None), (0.0, 1.0), (-math.inf, 2.0))
"""What the first process gives, which is what both get, and what the second one gives."""

TWO_PROCESSES = """
import sys
import torch
from tests.test_distributed import report

torch.set_num_threads(1)
store, rank = sys.argv[1], int(sys.argv[2])
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
report(store, rank)
torch.distributed.destroy_process_group()
"""


def report(store: str, number: int) -> None:
    """Write what this process finds."""
    tensors = [torch.full((2, 2), 1.0 + number), torch.tensor([number, 7]), torch.tensor(float(number), dtype=torch.float16)]
    average(tensors)
    scores = [[0.1, 0.2, 0.2, 0.2, 0.2], [0.1, 0.2, 0.3, 0.4, 0.5]][number]
    runner = make(Path(store + ".runs"), scores, dict(patience=2), val_evaluator=Scores("acc", scores))
    runner.train()
    found = {
        "place": [rank(), world_size(), is_main_process()],
        "agreed": [agree(pair[number], CPU) for pair in AGREED],
        "is_nan": math.isnan(agree(math.nan if number == 0 else 1.0, CPU) or 0.0),
        "averaged": [tensor.tolist() for tensor in tensors],
        "epochs": runner.epoch,
    }
    Path(f"{store}.{number}").write_text(json.dumps(found), encoding="utf-8")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Return what each of two processes finds."""
    store = tmp_path_factory.mktemp("two") / "store"
    command = [sys.executable, "-W", "error", "-c", TWO_PROCESSES, str(store)]
    processes = [subprocess.Popen([*command, str(number)], cwd=ROOT) for number in (0, 1)]
    assert [process.wait(timeout=150) for process in processes] == [0, 0]
    return [json.loads(Path(f"{store}.{number}").read_text(encoding="utf-8")) for number in (0, 1)]


def test_alone_a_process_agrees_with_itself() -> None:
    """Without a group nothing is sent, and nothing changes."""
    tensors = [torch.tensor([1.0, 2.0]), torch.tensor(3)]
    average(tensors)
    assert [tensor.tolist() for tensor in tensors] == [[1.0, 2.0], 3]
    assert [agree(mine, CPU) for mine, _ in AGREED] == [mine for mine, _ in AGREED]
    assert (rank(), world_size(), is_main_process()) == (0, 1, True)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_processes_agree_on_what_the_main_one_says(two: list[Any]) -> None:
    """Also that there is nothing, or that it is no number."""
    assert [found["place"] for found in two] == [[0, 2, True], [1, 2, False]]
    assert [found["agreed"] for found in two] == [[mine for mine, _ in AGREED]] * 2
    assert [found["is_nan"] for found in two] == [True, True]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_tensors_are_averaged_and_whole_numbers_are_those_of_the_main_process(two: list[Any]) -> None:
    """In place."""
    assert [found["averaged"] for found in two] == [[[[1.5, 1.5], [1.5, 1.5]], [0, 7], 0.5]] * 2


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_processes_whose_metrics_differ_stop_early_together(two: list[Any]) -> None:
    """In the second one the metric is still rising."""
    assert [found["epochs"] for found in two] == [4, 4]
