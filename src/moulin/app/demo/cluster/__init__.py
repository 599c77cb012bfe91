"""The demo in front of a Slurm cluster: four nodes made for it on this machine."""
