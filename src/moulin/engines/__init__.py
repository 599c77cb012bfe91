"""Adapters that make placements real; no engine knows another."""
