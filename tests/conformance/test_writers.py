"""Every writer that hookbus registers does right what all writers have to; a new one is in by being registered."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from hookbus import writers
from hookbus.registry import WRITERS
from hookbus.writers import Writer
from tests.conformance.checks import CHECKS
from tests.conformance.hook_checks import LOOPS
from tests.conformance.subjects import WRITER_NAMES, slow_but_for, writer
from tests.conformance.writer_checks import ALONE, IN_A_RUN, check_every_record_arrives

EVERY_WRITER = pytest.mark.parametrize("name", WRITER_NAMES)


AT_ITS_LEISURE = {("wandb", check_every_record_arrives): "W&B brings records to its files when it sees fit"}
"""What a package does not promise."""


@pytest.fixture(scope="module", autouse=True)
def services_of_packages() -> None:
    """Start what lives as long as the process before anybody looks for threads that are left behind."""
    if importlib.util.find_spec("wandb") is not None:
        importlib.import_module("wandb").setup().ensure_service()


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some destinations are below the current directory, unless they are told otherwise."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the only store that needs neither a server nor another package
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")


def test_every_writer_of_the_package_is_registered() -> None:
    """What can be imported can stand in `writers`, but for the base class."""
    exported = [getattr(writers, name) for name in writers.__all__]
    expected = {each for each in exported if isinstance(each, type) and issubclass(each, Writer) and each is not Writer}
    assert {WRITERS.get(name) for name in WRITER_NAMES} == expected


@EVERY_WRITER
@pytest.mark.parametrize("check", CHECKS)
def test_a_writer_is_made_as_it_should(check: Any, name: str) -> None:
    """From defaults and from configs."""
    check(WRITERS, writer(name))


@EVERY_WRITER
@pytest.mark.parametrize("check", ALONE)
def test_a_writer_does_its_work(check: Any, name: str, tmp_path: Path) -> None:
    """Without a run."""
    if (name, check) in AT_ITS_LEISURE:
        pytest.skip(f"NOT CHECKED: {AT_ITS_LEISURE[name, check]}")
    check(writer(name), tmp_path)


@EVERY_WRITER
@pytest.mark.parametrize("loop", slow_but_for(["epochs"], LOOPS))
@pytest.mark.parametrize("check", IN_A_RUN)
def test_a_writer_serves_a_run(check: Any, loop: str, name: str, tmp_path: Path) -> None:
    """As the only one."""
    check(writer(name), tmp_path, loop)
