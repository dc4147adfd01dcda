"""The content of a package, the same in both containers: how it is written, and how it is checked."""
