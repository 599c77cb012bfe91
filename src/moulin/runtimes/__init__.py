"""Programs that tasks run: heavy dependencies live here, and nobody imports them."""
