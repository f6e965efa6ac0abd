"""Averages of the weights of a model: the formulas, and the memory they work on."""

from __future__ import annotations

__all__ = (
    "AveragedWeights",
    "Averager",
    "ExponentialMovingAverage",
    "MomentumAnnealingEMA",
    "StochasticWeightAverage",
)

from hookbus.averaging.averagers import Averager, ExponentialMovingAverage, MomentumAnnealingEMA, StochasticWeightAverage
from hookbus.averaging.weights import AveragedWeights
