# ruff: noqa: RUF009 (`setting` is dataclasses.field with a description)
"""Every setting of a run, typed and frozen, with its default, its bounds and what it means."""

import dataclasses
import functools
from typing import ClassVar

from sealed_experts.settings.fields import (
    BASE_KEY,
    COMMIT,
    MODULE,
    VERSION,
    Group,
    as_group,
    declared,
    setting,
)
from sealed_experts.settings.packages import ConstraintSettings as ConstraintSettings
from sealed_experts.settings.packages import PackageSettings as PackageSettings
from sealed_experts.settings.sources import DATASET_SOURCES as DATASET_SOURCES
from sealed_experts.settings.sources import CombinedSource as CombinedSource
from sealed_experts.settings.sources import DatasetSettings as DatasetSettings
from sealed_experts.settings.sources import DemoSource as DemoSource
from sealed_experts.settings.sources import FieldMap as FieldMap
from sealed_experts.settings.sources import FilesSource as FilesSource
from sealed_experts.settings.sources import HubSource as HubSource
from sealed_experts.settings.sources import RowsSettings as RowsSettings
from sealed_experts.settings.stages import PrivacySettings as PrivacySettings
from sealed_experts.settings.stages import ReinforceSettings as ReinforceSettings
from sealed_experts.settings.stages import SftSettings as SftSettings
from sealed_experts.settings.stages import StageSettings as StageSettings
from sealed_experts.text import KEYWORD, LINES

# Single settings of an expert that `defaults` may give.
INHERITED = ("template", "eval_answers", "select", "select_metric")
LARGEST_INTEGER = 2**53 - 1  # what JSON readers carry exactly


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoBaseSettings(Group):
    """The small base model that is pretrained on the spot, for runs without network."""

    hidden_size: int = setting("Width of the model.", default=128, minimum=16, multipleOf=8)
    layers: int = setting("Number of decoder layers.", default=2, minimum=1)
    heads: int = setting("Number of attention heads; must divide hidden_size.", default=4, minimum=1)
    vocab_size: int = setting("Size of the byte-level BPE vocabulary.", default=2560, minimum=300)
    context: int = setting("Longest sequence in tokens.", default=512, minimum=64)
    pretrain_steps: int = setting("Optimizer steps of pretraining on the general text.", default=700, minimum=1)
    threads: int = setting("Processor threads of pretraining.", default=2, minimum=1, operation=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseSettings(Group):
    """The frozen language model that every expert adapts."""

    name: str = setting(
        "`demo` (pretrained on the spot), a folder, or a hub id.", default="demo", minLength=1, maxLength=1000
    )
    key: str | None = setting(
        "Name of the base in results/base/; derived from `name` when absent.",
        default=None,
        pattern=BASE_KEY,
    )
    revision: str | None = setting(
        "Commit of a hub model (40 hexadecimal digits): required for a hub id.", default=None, pattern=COMMIT
    )
    model_type: str | None = setting(
        "Architecture of a hub model (`qwen2`, `llama`, …), so that target modules are checked before it is fetched.",
        default=None,
        minLength=1,
    )
    dtype: str = setting("Number format of the frozen weights.", default="auto", enum=["auto", "float32", "bfloat16"])
    demo: DemoBaseSettings = setting("The demo base's size and pretraining.", default_factory=DemoBaseSettings)

    recipe: ClassVar[int] = 1  # raised when the demo base's recipe changes


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterSettings(Group):
    """The trainable part."""

    kind: str = setting("The adapter's kind.", default="lora", enum=["lora"])
    rank: int = setting("Rank of the update.", default=8, minimum=1, maximum=4096)
    alpha: float = setting("Scale of the update: alpha / rank.", default=16, exclusiveMinimum=0, maximum=1_000_000)
    target_modules: tuple[str, ...] = setting(
        "The base's linear modules that get an adapter.",
        default=("q_proj", "k_proj", "v_proj", "o_proj"),
        minItems=1,
        maxItems=100,
        uniqueItems=True,
        items={"minLength": 1, "maxLength": 200, "pattern": MODULE},
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoutingSettings(Group):
    """Which questions an expert answers."""

    gate: str = setting(
        "Type of the gate, for the engine that reads moe_config.json.", default="step", enum=["step", "none"]
    )
    keywords: tuple[str, ...] = setting(
        "Words and phrases that call this expert.",
        default=(),
        maxItems=10_000,
        uniqueItems=True,
        items={"pattern": KEYWORD, "maxLength": 200},
    )
    exclude: tuple[str, ...] = setting(
        "Words and phrases that keep this expert out of a question, whatever else the question holds.",
        default=(),
        maxItems=10_000,
        uniqueItems=True,
        items={"pattern": KEYWORD, "maxLength": 200},
    )
    priority: int = setting(
        "Where as many keywords of several experts match, the highest priority answers; then their order decides.",
        default=0,
        minimum=-1000,
        maximum=1000,
    )
    always_active: bool = setting("The fallback when no keyword matches.", default=False)
    match: str = setting(
        "`word`: whole words and simple plurals; `substring`: anywhere in the text.",
        default="word",
        enum=["word", "substring"],
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeSettings(Group):
    """Homomorphic encryption parameters carried to the serving engine."""

    scheme: str = setting("Encryption scheme.", default="ckks", enum=["ckks"])
    poly_modulus_degree: int = setting("Ring size.", default=16384, enum=[1024, 2048, 4096, 8192, 16384, 32768])
    coeff_modulus_bits: tuple[int, ...] = setting(
        "Bits of the modulus chain's primes.", default=(60, 40, 40, 60), minItems=1, items={"minimum": 2, "maximum": 60}
    )
    scale_bits: int = setting("Bits of the encoding scale.", default=40, minimum=1, maximum=60)
    use_column_packing: bool = setting("Pack matrices by column.", default=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatelinkSettings(Group):
    """Limits that the serving engine enforces per query and in total."""

    dp_epsilon: float = setting("Budget of one query.", default=1.0, exclusiveMinimum=0)
    max_epsilon: float = setting("Budget of all queries.", default=10.0, exclusiveMinimum=0)
    max_lora_rank: int = setting("Largest adapter rank the engine accepts.", default=32, minimum=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoeSettings(Group):
    """The assembled mixture."""

    he_config: HeSettings = setting("Homomorphic encryption.", default_factory=HeSettings)
    gatelink_config: GatelinkSettings = setting("Engine limits.", default_factory=GatelinkSettings)
    max_epsilon: float | None = setting(
        "Refuse to assemble a mixture whose joint ε is above this, or states none.", default=None, exclusiveMinimum=0
    )

    revision: ClassVar[int] = 2  # raised when the meaning of moe_config.json changes


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertSettings(Group):
    """One expert, with everything it inherits filled in.

    Each setting whose type is a `StageSettings` declares a stage of that name: adding one here is all that the
    schema, the layers, the checks and the canonical texts need.
    """

    name: str
    dataset: str = setting("The dataset that it learns from.", minLength=1)
    stages: tuple[str, ...] = setting(
        "The chain of training stages, in order.", default=("sft",), minItems=1, uniqueItems=True
    )
    template: str = setting(
        "How instruction, input and answer become text: `alpaca` (### Instruction / ### Response), `chatml`, or the"
        " `tokenizer`'s own chat template.",
        default="alpaca",
        enum=["alpaca", "chatml", "tokenizer"],
    )
    version: str = setting("Version of the package.", default="1.0.0", pattern=VERSION, maxLength=200)
    description: str = setting(
        "One line about the expert, carried by its package.", default="", pattern=LINES, maxLength=1000
    )
    adapter: AdapterSettings = setting("The trainable part.", default_factory=AdapterSettings)
    sft: SftSettings = setting("Supervised fine-tuning.", default_factory=SftSettings)
    reinforce: ReinforceSettings = setting("Policy gradients on a reward.", default_factory=ReinforceSettings)
    eval_answers: int = setting(
        "Answers to each held-out prompt when the stages are compared; more of them narrow the intervals.",
        default=1,
        minimum=1,
        maximum=100,
    )
    select: str = setting(
        "Which stage is shipped: the `last` one, or the `best` by `select_metric` on held-out records.",
        default="last",
        enum=["last", "best"],
    )
    select_metric: str = setting(
        "With `select: best`: the highest mean `reward`, or the lowest held-out `loss`.",
        default="reward",
        enum=["reward", "loss"],
    )
    routing: RoutingSettings = setting("Which questions it answers.", default_factory=RoutingSettings)
    package: PackageSettings = setting("Its package.", default_factory=PackageSettings)

    package_revision: ClassVar[int] = 3  # raised when the meaning of a package changes

    def stage(self, name: str) -> StageSettings:
        """Return the settings of one stage.

        Raises:
            KeyError: no such stage.
        """
        if name not in STAGES:
            raise KeyError(name)
        return getattr(self, name)


def _stages() -> dict[str, type[StageSettings]]:
    kinds = {name: as_group(kind) for name, (_, kind) in declared(ExpertSettings).items()}
    return {name: kind for name, kind in kinds.items() if kind is not None and issubclass(kind, StageSettings)}


STAGES: dict[str, type[StageSettings]] = _stages()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Group):
    """A whole run."""

    seed: int = setting("Seed of everything that is not secret.", default=42, minimum=0, maximum=LARGEST_INTEGER)
    device: str = setting(
        "Where models run; `auto`: the GPU when there is one.",
        default="auto",
        enum=["auto", "cpu", "cuda"],
        operation=True,
    )
    base: BaseSettings = setting("The frozen language model.", default_factory=BaseSettings)
    datasets: dict[str, DatasetSettings]
    experts: tuple[ExpertSettings, ...]  # in the configuration's order: the router's ties are decided by it
    moe: MoeSettings = setting("The assembled mixture.", default_factory=MoeSettings)

    @functools.cached_property
    def by_name(self) -> dict[str, ExpertSettings]:
        """The experts by name."""
        return {expert.name: expert for expert in self.experts}
