"""Directories of runs, made by hand line by line, and pages read back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

FACTS = {
    "experiment_name": "digits",
    "call": "train",
    "seed": 7,
    "device": "cpu",
    "hookbus_version": "0.1.0",
    "torch_version": "2.13.0",
    "world_size": 1,
}
START = "20260102_030405"
LINE = "2026/01/02 03:0{minute}:05 - {level} - {text}"
VOID = ("meta", "link", "br", "img", "input", "hr")


def train_record(iteration: int, loss: float | None = 0.5, epoch: int = 1, **values: Any) -> dict[str, Any]:
    """Return a record of training as the writer writes it."""
    return {"mode": "train", "epoch": epoch, "iter": iteration, "lr": 0.1, "eta": 60.0, "time": 0.25, "loss": loss, **values}


def val_record(iteration: int, **values: Any) -> dict[str, Any]:
    """Return a record of validation."""
    return {"mode": "val", "epoch": 1, "iter": iteration, **values}


def make_start(
    work_dir: Path, records: Iterable[dict[str, Any]] = (), *, name: str = START, facts: object = FACTS, log: Iterable[str] = ()
) -> Path:
    """Write the log directory of one start and return it."""
    log_dir = work_dir / name
    log_dir.mkdir(parents=True)
    (log_dir / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    lines = "".join(json.dumps(record) + "\n" for record in records)
    if lines:
        (log_dir / "metrics.jsonl").write_text(lines, encoding="utf-8")
    text = "".join(f"{line}\n" for line in log)
    if text:
        (log_dir / "train.log").write_text(text, encoding="utf-8")
    return log_dir


class Page(HTMLParser):
    """What a page is made of; tags that do not match are an error."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        """The texts below each kind of element."""
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element that holds nothing."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Close the element that was opened last."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note a text under every element it stands in."""
        for tag in set(self._open):
            self.texts.setdefault(tag, []).append(data)

    def attributes(self, name: str) -> list[str]:
        """Return the values of an attribute, wherever it stands."""
        return [value or "" for _, attributes in self.tags for key, value in attributes.items() if key == name]

    @property
    def curves(self) -> list[dict[str, Any]]:
        """Return the numbers behind the pictures."""
        return [json.loads(text) for text in self.attributes("data-curves")]
