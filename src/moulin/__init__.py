"""Moulin turns megawatts, sites, machines and open models into metered services."""

__version__ = "0.1.0"
