"""Durable truth: an append-only log and the current rows in SQLite, PostgreSQL or memory.

`open_store` in `moulin.store.opening` opens the first two, `moulin.store.memory` is the third. All
pass the same tests (tests/conformance/test_store.py). Nothing here decides what is written.
"""
