"""Test: one pass over the test data."""

from __future__ import annotations

__all__ = ("TestLoop",)

from hookbus.events import AfterTest, AfterTestEpoch, AfterTestIter, BeforeTest, BeforeTestEpoch, BeforeTestIter
from hookbus.loops.evaluation_base import EvaluationLoop


class TestLoop(EvaluationLoop):
    """Tests the model once; the events between `BeforeTest` and `AfterTest`."""

    __test__ = False  # its name makes test runners take it for a test case
    name = "test"
    before, after = BeforeTest, AfterTest
    before_epoch, after_epoch = BeforeTestEpoch, AfterTestEpoch
    before_iter, after_iter = BeforeTestIter, AfterTestIter
