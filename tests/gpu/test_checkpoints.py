"""Checkpoints of a run on a device: exact although the device is behind the host, and resumed bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hookbus.checkpoint import load_checkpoint
from hookbus.events import AfterTrainIter, BeforeTrainIter
from tests.checkpoint.builders import assert_same
from tests.gpu.places import PLACES, Place
from tests.runner.builders import make_runner
from tests.runner.learners import ITERATIONS, final_state, make_learner, train_until


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("is_async", [False, True], ids=["at once", "while training goes on"])
def test_a_checkpoint_holds_the_weights_of_its_step(place: Place, is_async: bool, tmp_path: Path) -> None:
    """Though the device still works on that step when the save begins, and on the next ones while it is written."""
    weights: list[dict[str, torch.Tensor]] = []
    options = dict(by_epoch=False, interval=1, async_save=is_async)
    runner = make_runner(tmp_path, device=place.device, val_dataloader=None, default_hooks=dict(checkpoint=options))
    runner.bus.subscribe(BeforeTrainIter, place.spin)
    runner.bus.subscribe(
        AfterTrainIter, lambda runner: weights.append({key: value.clone() for key, value in runner.model.state_dict().items()})
    )
    runner.train()
    assert len(weights) == 6
    saved = {path.name: load_checkpoint(path) for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith("iter_")}
    assert "iter_6" in saved
    for name, checkpoint in saved.items():
        expected = {key: value.cpu() for key, value in weights[int(name.removeprefix("iter_")) - 1].items()}
        assert_same(dict(checkpoint["state_dict"]), expected)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("by_epoch", [True, False], ids=["by epochs", "by iterations"])
@pytest.mark.parametrize("cut", [2, 7])
def test_a_run_cut_in_its_middle_goes_on_exactly(place: Place, by_epoch: bool, cut: int, tmp_path: Path) -> None:
    """With dropout drawn on the device, whose generator is part of the state."""
    last = "epoch_3" if by_epoch else f"iter_{ITERATIONS}"
    make_learner(tmp_path / "straight", by_epoch=by_epoch, device=place.device).train()
    train_until(make_learner(tmp_path / "cut", by_epoch=by_epoch, device=place.device), cut)
    torch.manual_seed(99)
    make_learner(tmp_path / "cut", by_epoch=by_epoch, device=place.device, resume=True).train()
    assert_same(final_state(tmp_path / "cut", last), final_state(tmp_path / "straight", last))
