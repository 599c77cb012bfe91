"""Values shared by every stage; this package computes nothing that needs a clock, dice or I/O."""
