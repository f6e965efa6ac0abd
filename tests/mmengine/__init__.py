"""Hooks of MMEngine, and hooks written for it, in real trainings of ours; `make test-mmengine` has an environment for them."""
