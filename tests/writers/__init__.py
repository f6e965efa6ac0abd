"""Tests of the destinations of log records."""
