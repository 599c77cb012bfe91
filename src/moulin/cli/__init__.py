"""The command line: a thin client of the SDK, with a few commands that work on this machine alone."""
