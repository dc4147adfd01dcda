"""Training: one loop for all stages, and the parts that it uses."""
