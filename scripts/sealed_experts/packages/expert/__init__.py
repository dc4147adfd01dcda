"""The container `.expert`, which `docs/expert.md` specifies."""
