"""Tasks on servers that a Ray cluster joins: one agent in the cluster, no Ray in the control process."""
