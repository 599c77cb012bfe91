"""Energy from readings: a stated power model, its exact split, and carbon."""
