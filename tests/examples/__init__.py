"""Tests of what users read first: the examples, the README and the pages of the documentation."""
