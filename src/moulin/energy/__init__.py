"""Energy from readings: a stated power model, its exact split, and carbon."""

from moulin.energy.allocation import allocate, carbon, node_energy
from moulin.energy.power import PowerModel, cpu_power, power_of
from moulin.energy.requests import (
    INPUT_TOKEN_WEIGHT,
    OUTPUT_TOKEN_WEIGHT,
    SHARE_METHOD,
    share_requests,
)

__all__ = [
    "INPUT_TOKEN_WEIGHT",
    "OUTPUT_TOKEN_WEIGHT",
    "SHARE_METHOD",
    "PowerModel",
    "allocate",
    "carbon",
    "cpu_power",
    "node_energy",
    "power_of",
    "share_requests",
]
