"""Tests of the command `hookbus`."""
