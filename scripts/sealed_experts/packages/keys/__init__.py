"""Publishers' keys, the trust store, and what a key may sign."""
