"""Classes of models on which a stage can train an adapter. Only the objective says which class it needs."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ModelClass:
    """A class of models.

    Attributes:
        noun: the name of such a model in messages.
        task_type: PEFT's name for its task.
        auto_class: the class in transformers that loads it.
        names: the mapping in transformers that lists the architectures with such a model.
        predicts_tokens: whether it can answer: it has a loss on each token of an answer, and samples answers.
    """

    noun: str
    task_type: str
    auto_class: str
    names: str
    predicts_tokens: bool

    def loader(self) -> Any:
        """Return the class in transformers that loads such a model."""
        import transformers

        return getattr(transformers, self.auto_class)

    def architectures(self) -> Collection[str]:
        """Return the `model_type` of every architecture with such a model."""
        from transformers.models.auto import modeling_auto

        return getattr(modeling_auto, self.names)


CAUSAL = ModelClass(
    noun="causal language model",
    task_type="CAUSAL_LM",
    auto_class="AutoModelForCausalLM",
    names="MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    predicts_tokens=True,
)
CLASSIFIER = ModelClass(
    noun="sequence classifier",
    task_type="SEQ_CLS",
    auto_class="AutoModelForSequenceClassification",
    names="MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    predicts_tokens=False,
)
BY_TASK = {kind.task_type: kind for kind in (CAUSAL, CLASSIFIER)}
