"""The report's colours: Okabe and Ito's, told apart with every common form of colour blindness."""

TRAINING, HELD_OUT, SPENT = "#0072B2", "#D55E00", "#009E73"
SPENT_TEXT = "#00664A"  # dark enough to read
# Of a reward's axes, in their order; it starts again where there are more.
AXES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")


def axis_color(index: int) -> str:
    """Return the colour of a reward's axis, by its place among them."""
    return AXES[index % len(AXES)]
