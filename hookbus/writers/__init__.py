"""The destinations of log records, one per file."""

from __future__ import annotations

__all__ = ("JsonlWriter", "Record", "TerminalWriter", "Writer")

from hookbus.writers.base import Record, Writer
from hookbus.writers.jsonl import JsonlWriter
from hookbus.writers.terminal import TerminalWriter
