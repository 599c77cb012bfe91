"""From allocations and requests to usages: quantities with their share of energy and carbon."""
