"""Tests of training as a user meets it."""
