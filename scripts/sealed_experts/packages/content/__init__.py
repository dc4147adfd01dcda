"""What a package says and holds, whatever the container: how it is written, and every check of it."""
