"""The engine without machines: the public twin of every real one, for tests and simulation."""
