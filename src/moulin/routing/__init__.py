"""Which replica serves a request, what it may cost at most, and where that money is held: pure."""
