"""Tasks as pods of a Kubernetes cluster: Jobs, JobSets and Kueue queues. Not yet run on a live cluster."""
