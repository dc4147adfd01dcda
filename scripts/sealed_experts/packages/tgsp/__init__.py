"""The container `.tgsp`, which `docs/tgsp.md` specifies."""
