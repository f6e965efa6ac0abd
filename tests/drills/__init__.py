"""Failure drills: one script per drill, which breaks something on purpose and counts what holds.

`python -m tests.drills` runs them all, `python -m tests.drills 1 6` some. Each prints one line of JSON. `--broken` runs each
against a twin that lacks what the drill guards, to show that the drill can fail; `--long` leaves out the time limit.
"""
