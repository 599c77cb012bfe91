"""What is read from outside: machines, meters, model files, keys; never decides anything."""
