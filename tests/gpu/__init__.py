"""Tests of what only a device can show; where there is none they run on the CPU, with stand-ins for what it lacks."""
