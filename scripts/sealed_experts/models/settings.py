"""Settings of the frozen base model."""

from typing import Annotated, ClassVar, Literal

from sealed_experts.settings.fields import Group, setting, text
from sealed_experts.settings.texts import Commit

BaseKey = Annotated[
    str,
    text(r"^[a-z0-9][a-z0-9._-]*$", "lower-case letters, digits, `.`, `_` and `-`, beginning with a letter or digit"),
]


class DemoBaseSettings(Group):
    """The small base model that the pipeline pretrains itself, for runs without network."""

    hidden_size: int = setting("Width of the model.", default=128, ge=16, multiple_of=8)
    layers: int = setting("Number of decoder layers.", default=2, ge=1)
    heads: int = setting("Number of attention heads; must divide hidden_size.", default=4, ge=1)
    vocab_size: int = setting("Size of the byte-level BPE vocabulary.", default=2560, ge=300)
    context: int = setting("Longest sequence in tokens.", default=512, ge=64)
    pretrain_steps: int = setting("Optimizer steps of pretraining on the general text.", default=700, ge=1)
    threads: int = setting("Processor threads of pretraining.", default=2, ge=1, operation=True)


class BaseSettings(Group):
    """The frozen language model that every expert adapts."""

    name: str = setting(
        "`demo` (pretrained by the pipeline), a folder, a hub id, a GGUF file, or a GGUF file in an installed Python"
        " package (`package:<module>/<file>`).",
        default="demo",
        min_length=1,
        max_length=1000,
    )
    key: BaseKey | None = setting("Name of the base in results/base/; absent: derived from `name`.", default=None)
    revision: Commit | None = setting(
        "Commit of a hub model (40 hexadecimal digits): required for a hub id.", default=None
    )
    model_type: str | None = setting(
        "Architecture of a hub model or GGUF file (`qwen2`, `llama`, …); target modules are then checked before it is"
        " fetched.",
        default=None,
        min_length=1,
    )
    dtype: Literal["auto", "float32", "bfloat16"] = setting("Number format of the frozen weights.", default="auto")
    demo: DemoBaseSettings = setting("The demo base's size and pretraining.", default=DemoBaseSettings())

    recipe: ClassVar[int] = 1  # raised when the demo base's recipe changes
