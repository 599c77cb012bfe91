"""Tests of Moulin; a package so that `python -m tests.simulation` runs."""
