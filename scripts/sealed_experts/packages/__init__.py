"""Keys and trust, the manifest, the `.tgsp` container and the strict linter. Knows nothing of torch."""
