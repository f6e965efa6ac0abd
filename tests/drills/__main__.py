"""Run the drills: `python -m tests.drills [numbers] [--seconds 90] [--long] [--broken] [--seed 0]`; see the package."""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import json
import pkgutil
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

import tests.drills
from tests.drills.drill import Spec

SECONDS = 90.0
"""What all drills together may take, so that they fit into two minutes on a machine that does something else as well."""

MAX_SKIPPED = 2
"""More drills than these left out are a failure: then nothing was shown."""


def find() -> dict[int, Spec]:
    """Return every drill by its number."""
    found = [each.name for each in pkgutil.iter_modules(tests.drills.__path__) if each.name.startswith("drill_")]
    specs: list[Spec] = [importlib.import_module(f"tests.drills.{name}").SPEC for name in sorted(found)]
    return {spec.number: spec for spec in specs}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the drills that were asked for, and return the exit code."""
    specs = find()
    options = _parse(arguments, list(specs))
    torch.set_num_threads(1)  # children are forked: no pool of threads may have been started
    wanted = [specs[number] for number in options.numbers or specs]
    deadline = time.monotonic() + options.seconds
    lines = [_run(spec, wanted[i:], deadline, options) for i, spec in enumerate(wanted)]
    skipped = [line for line in lines if "skipped" in line]
    return 0 if all(line["ok"] for line in lines) and len(skipped) <= MAX_SKIPPED else 1


def _run(spec: Spec, left: Sequence[Spec], deadline: float, options: argparse.Namespace) -> dict[str, Any]:
    """Run one drill with its share of the time that is left, and print its line."""
    share = max(1.0, deadline - time.monotonic()) * spec.weight / sum(each.weight for each in left)
    if not options.long:
        faulthandler.dump_traceback_later(60 + 3 * share, exit=True)
    line = spec.conduct(seed=options.seed, seconds=share, is_long=options.long, is_broken=options.broken)
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps(line), flush=True)
    return line


def _parse(arguments: Sequence[str] | None, numbers: Sequence[int]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.drills", description=tests.drills.__doc__)
    parser.add_argument("numbers", nargs="*", type=int, choices=[*numbers, []], help="the drills to run; all of them if left out")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="what all of them together may take (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="what random drills begin with")
    parser.add_argument("--long", action="store_true", help="run each in full and more often, without a limit")
    parser.add_argument("--broken", action="store_true", help="run the broken twins, each of which has to be caught")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
