"""Benchmarks with a stated question, a peer in the same run, and a committed result."""
