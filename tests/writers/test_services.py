"""W&B and MLflow, without a network: skipped where their packages are missing, which are in no extra that the suite installs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hookbus.errors import ConfigError
from hookbus.hooks import LoggerHook
from hookbus.writers import MLflowWriter, WandbWriter, Writer
from tests.runner.builders import make_runner


def train_with(tmp_path: Path, writer: Writer) -> list[tuple[int, int]]:
    """Train with a line for each iteration; return how many records were published and written."""
    logger = LoggerHook(interval=1, writers=[writer])
    make_runner(tmp_path, default_hooks=dict(logger=logger, checkpoint=None)).train()
    return [(stats.published, stats.written) for stats in logger.deliveries]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_wandb_takes_every_record_offline(tmp_path: Path) -> None:
    """Into the log directory, to be synchronised later."""
    pytest.importorskip("wandb")
    assert train_with(tmp_path, WandbWriter(options=dict(mode="offline", settings=dict(silent=True)))) == [(8, 8)]
    assert len(list(tmp_path.glob("*/wandb/offline-run-*/*.wandb"))) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_mlflow_takes_every_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each at its own iteration."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert train_with(tmp_path, MLflowWriter(tracking_uri=f"file:{tmp_path}/mlruns")) == [(8, 8)]
    (path,) = tmp_path.glob("mlruns/*/*/metrics/val/loss")
    assert [line.split()[2] for line in path.read_text().splitlines()] == ["3", "6"]


@pytest.mark.parametrize(("make", "extra"), [(WandbWriter, "wandb"), (MLflowWriter, "mlflow")])
def test_a_missing_package_is_named_with_its_extra(make: Callable[[], Any], extra: str) -> None:
    """When the writer is made, not when training has begun."""
    if importlib.util.find_spec(extra) is not None:
        pytest.skip(f"{extra} is installed here")
    with pytest.raises(ConfigError, match=rf"pip install 'hookbus\[{extra}\]'"):
        make()
