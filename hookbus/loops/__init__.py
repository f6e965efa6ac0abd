"""The loops that publish the events of a run, one per file."""

from __future__ import annotations

__all__ = ("BaseLoop", "EpochBasedTrainLoop", "IterBasedTrainLoop", "TestLoop", "ValLoop")

from hookbus.loops.base import BaseLoop
from hookbus.loops.epoch_based import EpochBasedTrainLoop
from hookbus.loops.iter_based import IterBasedTrainLoop
from hookbus.loops.test import TestLoop
from hookbus.loops.val import ValLoop
