"""The report's colours, by Okabe and Ito: people with common forms of colour blindness can distinguish them."""

TRAINING, HELD_OUT, SPENT = "#0072B2", "#D55E00", "#009E73"
SPENT_TEXT = "#00664A"  # dark enough to read
# The colours of a reward's axes, in order. After the last one the first follows again.
AXES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")


def axis_color(index: int) -> str:
    """Return the colour of a reward's axis, by its place among them."""
    return AXES[index % len(AXES)]
