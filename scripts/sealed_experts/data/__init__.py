"""From source rows to prepared records: sources, chat templates, the split, statistics."""
