"""The container `.tgsp`. `docs/tgsp.md` specifies it."""
