"""The states of the global random generators: kept in checkpoints, and put back."""

from __future__ import annotations

__all__ = ("restore_rng_state", "rng_kept", "rng_state", "seed_all")

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


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


def restore_rng_state(state: Mapping[str, Any]) -> None:
    """Let all global random generators go on from saved states; those of devices that are not here are left out."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    for device, device_state in enumerate(state.get("cuda", ())[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(device_state, device)


@contextmanager
def rng_kept() -> Iterator[None]:
    """Have all global random generators go on afterwards as if nothing had been drawn meanwhile."""
    state = rng_state()
    try:
        yield
    finally:
        restore_rng_state(state)
