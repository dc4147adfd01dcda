"""The container `.expert`. `docs/expert.md` specifies it."""
