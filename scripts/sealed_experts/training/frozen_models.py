"""Adapters that a stage learns from without training them: a reference, a teacher, a reward model."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sealed_experts.settings.fields import Group, setting

if TYPE_CHECKING:
    import torch

    from sealed_experts.models.loading import Base


class FrozenModel(Group):
    """An adapter of this configuration that a stage learns from. It is loaded once and never changed."""

    expert: str = setting("The expert that the adapter belongs to.", min_length=1)
    stage: str | None = setting("The stage that made the adapter; by default the expert's last one.", default=None)
    public: bool = setting(
        "Treat everything that the adapter learned as public: its ε is not counted. If false, its ε is composed with"
        " that of this stage.",
        default=False,
    )


def frozen_model(base: "Base", state: Mapping[str, Any], *, seed: int) -> "torch.nn.Module":
    """Return the model of an adapter file, frozen, on the device of `base`.

    It shares the base's weights, which are frozen too, unless it was trained as another class of model.

    Args:
        base: the loaded base, before any adapter is attached.
        state: the content of the adapter file.
        seed: any number: the weights that it initialises are replaced.

    Raises:
        UserError: the weights do not fit the base.
    """
    from sealed_experts.models.adapters import ADAPTER
    from sealed_experts.models.attachment import attach_adapter, load_adapter_state
    from sealed_experts.training.objectives import stage_of

    stage = stage_of(state)
    body = base.another(model_class=stage.model_class, options=stage.model_options())
    model = attach_adapter(body, ADAPTER.parse(state["adapter"]), seed=seed, model_class=stage.model_class)
    load_adapter_state(model, state["model_state_dict"])
    model.requires_grad_(False)
    return model.eval()
