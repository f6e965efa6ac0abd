"""Tests of what hookbus offers for tests."""
