"""The few Protocols through which stages meet the world; each has at least two implementations."""
