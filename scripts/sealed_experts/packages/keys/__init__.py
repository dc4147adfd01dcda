"""Publishers' keys, the store of those that are trusted, and what a key may sign."""
