"""Files that survive a crash: atomic writes, digests, canonical JSON, folder locks."""
