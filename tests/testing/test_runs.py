"""Small real runs: alike when made alike, and gone when nobody holds them."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from hookbus.errors import ConfigError
from hookbus.events import AfterTrainIter
from hookbus.testing import make_loader, make_model, make_runner, record
from tests.runner.builders import same, weights


def test_a_runner_is_ready_to_train(tmp_path: Path) -> None:
    """Two epochs of three batches on the CPU, with validation and test."""
    runner = make_runner(tmp_path)
    seen = record(runner.bus, AfterTrainIter)
    metrics = runner.train()
    assert [event.iter for event in seen.of(AfterTrainIter)] == list(range(6))
    assert metrics.keys() == runner.test().keys() == {"loss"}


def test_two_runners_made_alike_train_alike() -> None:
    """Bit for bit; both may live at once."""
    runners = [make_runner() for _ in range(2)]
    losses = [runner.train() for runner in runners]
    assert losses[0] == losses[1]
    assert same(weights(runners[0].model), weights(runners[1].model))


def test_changes_are_arguments_of_the_runner() -> None:
    """They take the place of what the maker would have given; a model brings its optimizer along."""
    model = make_model(seed=3)
    runner = make_runner(model=model, train_cfg=dict(max_epochs=1), train_dataloader=make_loader(8, batch_size=2))
    seen = record(runner.bus, AfterTrainIter)
    before = model.weight.detach().clone()
    runner.train()
    assert len(seen) == 4
    assert not torch.equal(before, model.weight)


def test_making_a_model_draws_nothing_from_the_global_generator() -> None:
    """So a test's own draws do not depend on it."""
    before = torch.get_rng_state()
    assert torch.equal(make_model(1).weight, make_model(1).weight)
    assert torch.equal(before, torch.get_rng_state())


def test_a_directory_of_its_own_goes_with_the_runner() -> None:
    """Nothing is left behind."""
    runner = make_runner()
    runner.train()
    work_dir = Path(runner.work_dir)
    assert work_dir.is_dir()
    del runner
    gc.collect()
    assert not work_dir.exists()


def test_a_runner_that_cannot_be_made_leaves_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is that of the runner."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ConfigError):
        make_runner(train_cfg=dict(max_epochs=-1))
    assert list(tmp_path.iterdir()) == []
