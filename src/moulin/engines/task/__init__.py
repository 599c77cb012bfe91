"""What engines share whose tasks live beside a shim: its files, its specification, its environment."""
