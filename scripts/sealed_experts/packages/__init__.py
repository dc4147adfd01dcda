"""Signed packages: keys and trust, content, the containers `.tgsp` and `.expert`, the registry. No import of torch."""
