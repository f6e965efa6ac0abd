"""The destinations of log records, one per file."""

from __future__ import annotations

__all__ = ("JsonlWriter", "Record", "RunPlace", "TensorboardWriter", "TerminalWriter", "Writer")

from hookbus.writers.base import Record, RunPlace, Writer
from hookbus.writers.jsonl import JsonlWriter
from hookbus.writers.tensorboard import TensorboardWriter
from hookbus.writers.terminal import TerminalWriter
