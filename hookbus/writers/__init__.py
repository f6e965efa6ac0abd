"""The destinations of log records, one per file."""

from __future__ import annotations

__all__ = (
    "CSVWriter",
    "JsonlWriter",
    "MLflowWriter",
    "Record",
    "RunPlace",
    "RunPosition",
    "TensorboardWriter",
    "TerminalWriter",
    "WandbWriter",
    "Writer",
)

from hookbus.writers.base import Record, RunPlace, RunPosition, Writer
from hookbus.writers.csv import CSVWriter
from hookbus.writers.jsonl import JsonlWriter
from hookbus.writers.mlflow import MLflowWriter
from hookbus.writers.tensorboard import TensorboardWriter
from hookbus.writers.terminal import TerminalWriter
from hookbus.writers.wandb import WandbWriter
