"""Tests of `hookbus.checkpoint`."""
