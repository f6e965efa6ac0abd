"""Validation: one pass over the validation data."""

from __future__ import annotations

__all__ = ("ValLoop",)

from hookbus.events import AfterVal, AfterValEpoch, AfterValIter, BeforeVal, BeforeValEpoch, BeforeValIter
from hookbus.loops.evaluation_base import EvaluationLoop


class ValLoop(EvaluationLoop):
    """Validates the model once; the events between `BeforeVal` and `AfterVal`."""

    name = "validation"
    before, after = BeforeVal, AfterVal
    before_epoch, after_epoch = BeforeValEpoch, AfterValEpoch
    before_iter, after_iter = BeforeValIter, AfterValIter
