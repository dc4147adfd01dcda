"""Adapters that a stage learns from without training them: a reference, a teacher, a reward model."""

from sealed_experts.settings.fields import Group, setting


class FrozenModel(Group):
    """An adapter of this configuration that a stage learns from. It is loaded once and never changed."""

    expert: str = setting("The expert that the adapter belongs to.", min_length=1)
    stage: str | None = setting("The stage that made the adapter; by default the expert's last one.", default=None)
    public: bool = setting(
        "Treat everything that the adapter learned as public: its ε is not counted. If false, its ε is composed with"
        " that of this stage.",
        default=False,
    )
