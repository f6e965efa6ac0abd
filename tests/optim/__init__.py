"""Tests of the optimizer's side of training."""
