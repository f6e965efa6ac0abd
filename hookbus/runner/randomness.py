"""Seeds the random generators of a run, and makes torch deterministic for its duration."""

from __future__ import annotations

__all__ = ("Randomness",)

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hookbus.errors import ConfigError
from hookbus.random_state import seed_all


class Randomness:
    """The options of a runner's `randomness`.

    Args:
        seed: for python, numpy and torch; a random one where left out.
        deterministic: refuse operations that have no deterministic form, while a run of this runner is going on.
        diff_rank_seed: give each process of distributed training a seed of its own.

    Raises:
        ConfigError: the seed is negative or too large.
    """

    def __init__(self, seed: int | None = None, deterministic: bool = False, diff_rank_seed: bool = False) -> None:
        if seed is not None and not 0 <= seed < 2**63:
            msg = f"randomness.seed = {seed}: expected a number from 0 to 2**63 - 1"
            raise ConfigError(msg)
        self.seed = seed
        self.deterministic = deterministic
        self.diff_rank_seed = diff_rank_seed

    def seed_everything(self, rank: int) -> int:
        """Seed python, numpy and torch and return the seed."""
        seed = secrets.randbelow(2**31) if self.seed is None else self.seed
        seed += rank if self.diff_rank_seed else 0
        seed_all(seed)
        return seed

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Have torch deterministic for the duration of a run, if asked for, and as it was afterwards."""
        if not self.deterministic:
            yield
            return
        before = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
        torch.use_deterministic_algorithms(mode=True)
        torch.backends.cudnn.benchmark = False
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(before[0])
            torch.backends.cudnn.benchmark = before[1]
