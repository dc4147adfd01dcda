"""Learning rates as a function of the step."""

import math


def learning_rate(*, step: int, total_steps: int, peak: float, warmup_steps: int, schedule: str) -> float:
    """Return the learning rate of step `step` (from 1).

    All schedules rise linearly over `warmup_steps`. Then `constant` stays at `peak`. `linear` and `cosine` fall and
    would reach zero one step after the last (`cosine`: Loshchilov and Hutter, "SGDR", 2017, equation 5, one period).
    """
    if step <= warmup_steps:
        return peak * step / warmup_steps
    if schedule == "constant":
        return peak
    progress = (step - 1 - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule == "linear":
        return peak * (1 - progress)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
