"""A run's whole configuration: which settings there are, where they may stand, and what must fit what."""
