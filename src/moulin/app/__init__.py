"""Composition root: settings, wiring, the supervisor, and what runs without a server."""
