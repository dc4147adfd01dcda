"""Make rewards from their names and options, and check their scores; rewards that users wrote."""
