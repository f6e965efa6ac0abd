"""Accumulation in several processes: gradients are synchronised once per group, and before every step."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from hookbus.optim import OptimWrapper
from tests.optim.builders import Training, close, gradients_of, make_batches, make_model

ROOT = Path(__file__).parents[2]

TWO_PROCESSES = """
import sys
import torch
from torch.nn.parallel import DistributedDataParallel
from hookbus.optim import OptimWrapper
from tests.optim.builders import loss_of, make_batches, make_model

store, rank = sys.argv[1], int(sys.argv[2])
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
model = DistributedDataParallel(make_model())
wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0), accumulative_counts=3)
for batch in make_batches(4)[rank::2]:
    with wrapper.optim_context(model):
        loss = loss_of(model, batch)
    wrapper.update_params(loss)
wrapper.finish()
torch.save([parameter.detach() for parameter in model.parameters()], f"{store}.{rank}")
torch.distributed.destroy_process_group()
"""


@contextmanager
def only_process(store: Path) -> Iterator[None]:
    """Be the only process of a distributed run."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


class Telltale(torch.nn.Linear):
    """A model that counts how often it may leave out the synchronisation."""

    def __init__(self) -> None:
        super().__init__(4, 3, dtype=torch.float64)
        self.postponed: list[bool] = []
        self._is_inside = False

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Do as `DistributedDataParallel` does."""
        self._is_inside = True
        yield
        self._is_inside = False

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Note whether this happens inside `no_sync`."""
        self.postponed.append(self._is_inside)
        return super().forward(batch)


@pytest.mark.parametrize(
    ("per_update", "max_iters", "postponed"),
    [
        (1, 3, [False, False, False]),
        (3, 8, [True, True, False, True, True, False, True, False]),
        (3, None, [True, True, False, True, True, False, True, True]),
        (4, 1, [False]),
    ],
)
def test_only_the_last_of_a_group_is_synchronised(per_update: int, max_iters: int | None, postponed: list[bool]) -> None:
    """`optim_context` enters `no_sync` for all others."""
    training = Training(accumulative_counts=per_update, max_iters=max_iters)
    training.model = model = Telltale()
    training.optimizer.param_groups[0]["params"][:] = model.parameters()
    for batch in make_batches(len(postponed)):
        training.iterate(batch)
    assert model.postponed == postponed


def test_a_distributed_model_accumulates_like_any_other(tmp_path: Path) -> None:
    """That of torch itself, alone in its run."""
    batches, plain = make_batches(5), make_model()
    before = [parameter.detach().clone() for parameter in plain.parameters()]
    expected = gradients_of(plain, batches)
    with only_process(tmp_path / "store"):
        model = DistributedDataParallel(plain)
        wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0), accumulative_counts=5)
        for batch in batches:
            with wrapper.optim_context(model):
                loss = model(batch).square().mean()
            wrapper.update_params(loss)
    assert wrapper.updates == 1
    assert close([old - new.detach() for old, new in zip(before, plain.parameters(), strict=True)], expected)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_processes_agree_on_the_weights_after_a_group_whose_end_nobody_foresaw(tmp_path: Path) -> None:
    """Two of three micro-batches in each of two processes: the step is that of one big batch of four."""
    store = tmp_path / "store"
    command = [sys.executable, "-W", "error", "-c", TWO_PROCESSES, str(store)]
    processes = [subprocess.Popen([*command, str(rank)], cwd=ROOT) for rank in (0, 1)]
    assert [process.wait(timeout=150) for process in processes] == [0, 0]
    model = make_model()
    before = [parameter.detach() for parameter in model.parameters()]
    expected = gradients_of(model, make_batches(4))
    for rank in (0, 1):
        after = torch.load(f"{store}.{rank}")
        assert close([old - new for old, new in zip(before, after, strict=True)], expected)
