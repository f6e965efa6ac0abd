"""Seeds every random generator of a run, and collects their states."""

from __future__ import annotations

__all__ = ("Randomness", "rng_state", "seed_everything")

import random
import secrets
from typing import Any

import numpy as np
import torch


class Randomness:
    """The options of a runner's `randomness`."""

    def __init__(self, seed: int | None = None, deterministic: bool = False) -> None: ...


def seed_everything(seed: int | None = None, deterministic: bool = False) -> int:
    """Seed python, numpy and torch and return the seed; a random one where none is given.

    `deterministic` makes torch refuse operations that have no deterministic form.
    """
    seed = secrets.randbelow(2**31) if seed is None else seed
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        torch.use_deterministic_algorithms(mode=True)
    return seed


def rng_state() -> dict[str, Any]:
    """Return the states of all global random generators."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state
