"""Engine that runs tasks as jobs of a Slurm cluster, which stays as it is."""
