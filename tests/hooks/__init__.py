"""Tests of the hooks that ship."""
