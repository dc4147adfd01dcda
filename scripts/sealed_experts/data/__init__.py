"""Data: from source rows to prepared records, with sources, chat templates, the split and statistics."""
