"""From a reward's name and options to one whose scores are checked; the user's own functions."""
