"""`hookbus report`: a picture and a page of any run, in whatever state it is."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner, Result

from hookbus import Runner
from hookbus.checkpoint import CheckpointStore, save_checkpoint
from hookbus.cli.commands import app
from tests.cli.runs import FACTS, LINE, START, Page, make_start, train_record, val_record
from tests.parameters import slow_unless

LOGGER = {"handler": "LoggerHook.after_train_iter", "event": "AfterTrainIter", "lane": "inline", "calls": 100, "seconds": 0.5}
COSTS = [
    {**LOGGER, "share": 0.02},
    {"handler": "watch", "event": "AfterVal", "lane": "background", "calls": 0, "seconds": 0.1, "share": 0.001},
    {"handler": "no seconds"},
    "no entry",
]
HOSTILE = "<script>alert(1)</script>\"'&$x_1^$\u202e\n</svg>-->"


def hookbus(*arguments: object) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def report(run_dir: Path, *options: object) -> Page:
    """Write the page of a run and read it."""
    result = hookbus("report", run_dir, "--format", "html", *options)
    assert result.exit_code == 0, result.output
    return Page((run_dir / "report.html").read_text(encoding="utf-8"))


def make_checkpoint(work_dir: Path, name: str, iteration: int, **options: Any) -> Path:
    """Commit a small checkpoint."""
    store = CheckpointStore(work_dir / "checkpoints")
    return save_checkpoint(store, name, {"state_dict": {"w": torch.zeros(3)}}, epoch=1, iter=iteration, **options)


def line_of(page: Page, label: str, panel: int = 0) -> dict[int, float | None]:
    """Return the values of a curve by iteration."""
    line = next(line for line in page.curves[panel]["lines"] if line["label"] == label)
    return dict(zip(line["iters"], line["values"], strict=True))


def png_size(path: Path) -> tuple[int, int]:
    """Return width and height of a picture."""
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def test_what_is_drawn_is_what_was_logged(tmp_path: Path) -> None:
    """A real run: each value of the curves stands in `metrics.jsonl`, and none is missing."""
    inputs = torch.randn(64, 4)
    data = DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size=8)
    model = torch.nn.Linear(4, 1)
    runner = Runner(
        model=model,
        loss_fn=torch.nn.functional.mse_loss,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        train_dataloader=data,
        val_dataloader=data,
        train_cfg=dict(max_epochs=3),
        default_hooks=dict(logger=dict(interval=2, writers=["jsonl"]), checkpoint=dict(interval=1)),
        work_dir=tmp_path / "linear",
        device="cpu",
    )
    runner.train()

    page = report(tmp_path / "linear")

    logged = [json.loads(line) for line in (runner.log_dir / "metrics.jsonl").read_text().splitlines()]
    for mode, label in (("train", "training"), ("val", "validation")):
        values = {record["iter"]: pytest.approx(record["loss"], rel=1e-5) for record in logged if record["mode"] == mode}
        assert line_of(page, label) == values
        assert values
    texts = page.texts["td"]
    assert [text for text in texts if text.startswith("epoch_")] == ["epoch_3", "epoch_2", "epoch_1"]
    assert page.texts["b"][0] in ("finished", "ended")
    assert "linear" in page.texts["h1"]


def test_both_files_are_written_where_they_are_wanted(tmp_path: Path) -> None:
    """Their paths are the output, and nothing else is left in the directory."""
    make_start(tmp_path / "run", [train_record(10), train_record(20), val_record(20, accuracy=0.5)])

    result = hookbus("report", tmp_path / "run", "--out", tmp_path / "new" / "place")

    assert result.exit_code == 0
    assert [Path(line).name for line in result.output.split()] == ["report.png", "report.html"]
    assert sorted(path.name for path in (tmp_path / "new" / "place").iterdir()) == ["report.html", "report.png"]
    width, height = png_size(tmp_path / "new" / "place" / "report.png")
    assert width == 1800
    assert height > 1000


def test_the_page_loads_nothing_and_runs_no_script_but_its_own(tmp_path: Path) -> None:
    """No address leads out of the page, the policy forbids it besides, and no two elements share an id."""
    make_start(
        tmp_path,
        [train_record(10), train_record(20), val_record(20, accuracy=0.5)],
        log=[LINE.format(minute=4, level="INFO", text="x")],
    )
    page = report(tmp_path)

    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not {"src", "href", "action", "srcset", "onclick"} & {key for _, found in page.tags for key in found}
    assert all(link.startswith("#panel") for link in page.attributes("xlink:href"))
    assert re.findall(r"url\((?!#)|@import", source) == []
    assert "default-src 'none'" in next(text for text in page.attributes("content") if "src" in text)
    assert [tag for tag, _ in page.tags].count("script") == 1
    ids = page.attributes("id")
    assert sorted(ids) == sorted(set(ids))
    assert set(page.attributes("aria-labelledby")) <= set(ids)
    assert all(label for tag, found in page.tags if tag == "svg" for label in [found.get("aria-label")])


def test_names_from_files_are_text_and_nothing_else(tmp_path: Path) -> None:
    """Markup, dollar signs and control characters in any name that a file gives."""
    start = make_start(
        tmp_path,
        [train_record(10) | {HOSTILE: 1.0}, train_record(20) | {HOSTILE: 2.0}, val_record(20, **{f"v{HOSTILE}": 0.5})],
        facts=dict.fromkeys(FACTS, HOSTILE) | {"state": "failed", "error": HOSTILE},
        log=[HOSTILE.replace("\n", " ")],
    )
    (start / "handler_costs.json").write_text(json.dumps([{**LOGGER, "handler": HOSTILE, "event": HOSTILE, "lane": HOSTILE}]))
    make_checkpoint(tmp_path, "epoch_1", 20, role="best", facts={"metric": HOSTILE, "score": 0.5})
    (tmp_path / "checkpoints" / HOSTILE.replace("/", "_")).mkdir()
    (tmp_path / "checkpoints" / HOSTILE.replace("/", "_") / "manifest.json").write_text(HOSTILE)

    result = hookbus("report", tmp_path)

    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert result.exit_code == 0
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "alert" not in "".join(page.texts["script"])
    assert any("<script>alert" in text for text in page.texts["h1"])
    assert [tag for tag, _ in page.tags].count("svg") == len(page.curves)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "2 training values were NaN or infinite"), (1.5, "")],
    ids=["gaps", "no gaps"],
)
def test_values_that_are_not_finite_are_gaps_and_are_counted(tmp_path: Path, value: float | None, text: str) -> None:
    """In the curve, in what is said about it, and in the table."""
    losses = [1.0, value, value, 2.0]
    make_start(tmp_path, [train_record(10 * number, loss) for number, loss in enumerate(losses, 1)])
    page = report(tmp_path)

    assert list(line_of(page, "training").values()) == losses
    assert text in page.attributes("aria-label")[0]
    assert ("NaN or infinite" in page.attributes("aria-label")[0]) == bool(text)


def test_a_run_of_nan_alone_is_drawn_without_complaint(tmp_path: Path) -> None:
    """There is nothing to draw, and the page says so."""
    make_start(tmp_path, [train_record(10, None), train_record(20, None), val_record(20, accuracy=None, loss=None)])

    assert hookbus("report", tmp_path, "--format", "png").exit_code == 0
    assert "training has no finite value" in report(tmp_path).attributes("aria-label")[0]


@pytest.mark.parametrize(
    ("values", "scale"),
    slow_unless(
        lambda values, scale: values[0] == 1.0,
        [
            ([1.0, 0.5], ""),
            ([1.0, 0.01], "log scale"),
            ([1.0, -0.01], ""),
            ([1e-190, 1e190], "log scale"),
            ([1e-300, 1e300], ""),
            ([1e-300, 1.0], ""),
            ([0.0, 0.0], ""),
        ],
    ),
)
def test_the_scale_suits_the_values(tmp_path: Path, values: list[float], scale: str) -> None:
    """Positive values that span magnitudes get a logarithmic one."""
    make_start(tmp_path, [train_record(10 * number, value) for number, value in enumerate(values, 1)])
    page = report(tmp_path)

    assert ("log scale" in page.texts["text"]) == (scale == "log scale")


@pytest.mark.parametrize(
    ("records", "remark"),
    [
        ([], "holds no record yet"),
        ([train_record(10)], "No validation is on record."),
        ([val_record(0, accuracy=0.5)], ""),
        ([{"mode": "test", "epoch": 0, "iter": 0, "accuracy": 0.5}], "No validation is on record."),
    ],
    ids=["empty", "one record", "validation alone", "test alone"],
)
def test_what_is_missing_is_said(tmp_path: Path, records: list[dict[str, Any]], remark: str) -> None:
    """A run that has just begun, or never trained, has a report, too."""
    make_start(tmp_path, records)

    assert hookbus("report", tmp_path, "--format", "png").exit_code == 0
    assert remark in " ".join(report(tmp_path).texts.get("li", [""]))


def test_a_log_directory_is_a_run_of_one_start(tmp_path: Path) -> None:
    """The checkpoints are those of its work directory."""
    start = make_start(tmp_path, [train_record(10)])
    make_start(tmp_path, [train_record(20)], name="20260103_000000")
    make_checkpoint(tmp_path, "iter_10", 10)
    page = report(start)

    assert line_of(page, "training") == {10: 0.5}
    assert "iter_10" in page.texts["td"]


def test_a_directory_with_checkpoints_alone_has_a_report(tmp_path: Path) -> None:
    """Somebody may have kept nothing else."""
    make_checkpoint(tmp_path, "iter_10", 10)

    assert "There is no log directory, only checkpoints." in report(tmp_path).texts["li"]


def test_handlers_are_listed_the_dearest_first(tmp_path: Path) -> None:
    """Entries that make no sense are left out."""
    start = make_start(tmp_path, [train_record(10)])
    assert any("handler_costs.json" in text for text in report(tmp_path).texts["p"])
    (start / "handler_costs.json").write_text(json.dumps(COSTS))

    page = report(tmp_path)

    names = [text for text in page.texts["td"] if text in ("LoggerHook.after_train_iter", "watch", "no seconds")]
    assert names == ["LoggerHook.after_train_iter", "watch"]
    assert "2.00%" in page.texts["td"]
    assert hookbus("report", tmp_path, "--format", "png").exit_code == 0


def test_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    """Here one lacks a file and one has a manifest that is not sound; neither is listed as a checkpoint."""
    make_start(tmp_path, [train_record(10), train_record(20)])
    make_checkpoint(tmp_path, "iter_10", 10, role="best", facts={"metric": "accuracy", "score": 0.75})
    (make_checkpoint(tmp_path, "iter_15", 15) / "model.safetensors").unlink()
    (make_checkpoint(tmp_path, "iter_20", 20) / "manifest.json").write_text("{}")

    texts = report(tmp_path).texts["td"]
    listing = hookbus("checkpoints", tmp_path)

    assert "accuracy 0.75" in texts
    assert any("model.safetensors is missing" in text for text in texts)
    assert [text for text in texts if text == "damaged"] == ["damaged"] * 2
    assert listing.exit_code == 1
    assert re.search(r"^iter_10 .* accuracy 0\.75 +complete$", listing.output, re.MULTILINE)
    assert re.search(r"^iter_15 is damaged: .*model\.safetensors is missing", listing.output, re.MULTILINE)
    assert re.search(r"^iter_20 is damaged: ", listing.output, re.MULTILINE)


def test_a_flipped_bit_is_found_by_verify_and_not_without(tmp_path: Path) -> None:
    """Comparing checksums reads every byte, so it is done on request."""
    path = make_checkpoint(tmp_path, "iter_10", 10) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    assert hookbus("checkpoints", tmp_path).exit_code == 0
    assert hookbus("checkpoints", tmp_path, "--verify").exit_code == 1


def test_no_checkpoints_are_no_mistake(tmp_path: Path) -> None:
    """A run may not have saved yet."""
    make_start(tmp_path)

    result = hookbus("checkpoints", tmp_path)

    assert (result.exit_code, result.output.startswith("no checkpoints in ")) == (0, True)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("digist", "there is no such directory; runs nearby: {}/digits, {}/faces"),
        ("", "it holds no log directory and no checkpoints; runs nearby: {}/digits, {}/faces"),
        ("faces/20260102_03040", "there is no such directory; runs nearby: {}/faces"),
        ("empty", "it holds no log directory and no checkpoints; no run was found in"),
    ],
)
def test_a_wrong_directory_names_the_runs_nearby(tmp_path: Path, asked: str, expected: str) -> None:
    """The one with the most similar name comes first."""
    make_start(tmp_path / "digits")
    make_start(tmp_path / "faces")
    (tmp_path / "empty").mkdir()

    result = hookbus("report", tmp_path / asked)

    assert result.exit_code == 1
    assert expected.format(tmp_path, tmp_path) in result.stderr


def test_an_unknown_format_is_a_mistake_of_the_command_line(tmp_path: Path) -> None:
    """It names the valid ones and writes nothing."""
    start = make_start(tmp_path)

    result = hookbus("report", tmp_path, "--format", "png,pdf")

    assert result.exit_code == 2
    assert "'pdf' is no format" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [start.name]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """In one sentence with the path, and not as a traceback."""
    make_start(tmp_path / "run", [train_record(10)])
    (tmp_path / "file").touch()

    result = hookbus("report", tmp_path / "run", "--out", tmp_path / "file", "--format", "html")

    assert result.exit_code == 1
    assert str(tmp_path / "file") in result.stderr


def test_without_its_extra_the_command_names_it() -> None:
    """It is installed in any case, and ends with the exit code of a wrong command."""
    hidden = "import sys; sys.modules['typer'] = None; from hookbus.cli.main import main; main()"

    result = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, check=False)

    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "hookbus: this command needs typer; pip install 'hookbus[cli]' brings what is missing\n"


@pytest.mark.slow
def test_the_command_in_a_process_of_its_own(tmp_path: Path) -> None:
    """`python -m hookbus` is what the console script calls."""
    make_start(tmp_path, [train_record(10), train_record(20)], name=START)

    result = subprocess.run([sys.executable, "-m", "hookbus", "report", tmp_path], capture_output=True, text=True, check=False)

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [str(tmp_path / "report.png"), str(tmp_path / "report.html")]


@pytest.mark.slow
def test_the_report_of_a_long_run_is_small(tmp_path: Path) -> None:
    """A hundred thousand records make no larger page than a few thousand."""
    make_start(tmp_path, [train_record(number, 1 / number) for number in range(1, 100_001)])
    report(tmp_path)

    assert (tmp_path / "report.html").stat().st_size < 1_500_000
