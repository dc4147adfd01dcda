"""Settings of a stage's privacy."""

from typing import Annotated, Literal

from pydantic import Field

from sealed_experts.settings.fields import Group, setting


class PrivacySettings(Group):
    """Differential privacy of a stage. Neighbouring datasets differ in one unit, added or removed."""

    enabled: bool = setting("Train under differential privacy.", default=True)
    mode: Literal["release", "reproducible"] = setting(
        "`release`: draws and noise use a secret key. `reproducible`: the key follows from the seed; no ε is claimed.",
        default="release",
    )
    noise_multiplier: Annotated[float, Field(ge=1e-3, le=1e6)] | Literal["auto"] = setting(
        "Standard deviation of the noise divided by the clipping norm; `auto`: the last step reaches target_epsilon.",
        default=1.0,
    )
    target_epsilon: float = setting("Training stops before ε would exceed this.", default=8.0, gt=0)
    delta: float = setting("The δ for which ε is stated.", default=1e-5, ge=1e-12, lt=1)
    max_grad_norm: float = setting("Clipping norm of each unit's gradient.", default=1.0, gt=0)
