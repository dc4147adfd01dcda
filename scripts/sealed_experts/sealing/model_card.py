"""The model card: README.md of a package, written from its manifest alone."""

from collections.abc import Mapping
from typing import Any

_TRAINING_ROWS = (
    ("steps", "Optimizer steps"),
    ("stopped_reason", "Ended by"),
    ("batch_size", "Logical batch (expected, under privacy)"),
    ("learning_rate", "Learning rate"),
    ("schedule", "Schedule"),
    ("warmup_steps", "Warmup steps"),
    ("weight_decay", "Weight decay"),
    ("max_seq_len", "Longest example in tokens"),
    ("reward", "Reward"),
    ("max_new_tokens", "Longest sampled answer in tokens"),
    ("temperature", "Sampling temperature"),
    ("top_p", "Nucleus (top-p)"),
    ("kl_coef", "Weight of the KL divergence"),
    ("entropy_coef", "Weight of the entropy bonus"),
)


def model_card(manifest: Mapping[str, Any]) -> str:
    """Return a short model card in Markdown. `payload` and `members` are not needed."""
    sections = [
        f"# {manifest['name']} {manifest['version']}\n\n{_plain(manifest['description'])}".rstrip(),
        _adapter(manifest),
        _training(manifest["training"]),
        _privacy(manifest["privacy"], manifest["training"]),
        f"## Evaluation\n\n{_evaluation(manifest['evaluation'], manifest['training'])}",
        "## Limits\n\nThe expert answers in the style and within the field of its training data; its answers can be "
        "wrong. The signature says who made the package and that it is unaltered, not that it is right.",
        "## Loading\n\n`sealed-experts verify` checks the package, `sealed-experts unpack` writes a folder that"
        " `peft.PeftModel.from_pretrained` loads on the base named above.",
    ]
    return "\n\n".join(sections) + "\n"


def _adapter(manifest: Mapping[str, Any]) -> str:
    adapter, base, routing = manifest["adapter"], manifest["base"], manifest["routing"]
    revision = f" at revision `{base['revision']}`" if base["revision"] else ""
    called = ", ".join(_plain(keyword) for keyword in routing["keywords"]) or "no keyword"
    fallback = " It also answers what no expert is called for." if routing["always_active"] else ""
    return (
        f"## Adapter\n\nA {adapter['kind']} adapter of rank {adapter['rank']} (alpha {adapter['alpha']:g},"
        f" {adapter['parameters']:,} parameters) on {', '.join(adapter['target_modules'])} of `{_plain(base['name'])}`"
        f"{revision} (digest `{base['digest']}`). Prompt template: {manifest['template']}.\n\n"
        f"Called by: {called}.{fallback}"
    )


def _training(training: Mapping[str, Any]) -> str:
    rows = [f"| {label} | {_plain(str(training[field]))} |" for field, label in _TRAINING_ROWS if field in training]
    return "\n".join(
        [
            f"## Training\n\nStages: {', '.join(training['stages'])}. This package holds {training['selected_stage']}:"
            f" {_plain(training['selection_reason'])}.\n",
            "| Setting | Value |",
            "| --- | --- |",
            *rows,
        ]
    )


def _privacy(privacy: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    if privacy["epsilon"] is None:
        claim = f"No privacy is claimed: {_plain(privacy['reason'])}."
    else:
        claim = (
            f"Trained under ({privacy['epsilon']:.4g}, {privacy['delta']:g})-differential privacy for each unit"
            f" ({_plain(privacy['unit'])}), added or removed."
        )
    stages, selected = training["stages"], training["selected_stage"]
    if selected != stages[-1]:
        claim += (
            f" It covers all stages ({', '.join(stages)}), not only {selected}, which the package holds: the choice"
            " looked at the weights of each."
        )
    return f"## Privacy\n\n{claim} `privacy_receipt.json` holds the details."


def _evaluation(evaluation: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    if not evaluation["published"]:
        return f"Withheld: {_plain(evaluation['reason'])}."
    selected = training["selected_stage"]
    # What the first stage started from was not trained here; what a later one started from was.
    before, after = (
        ("before training", "after") if selected == training["stages"][0] else (f"before stage {selected}", "after it")
    )
    lines = [
        f"Held-out loss (nats a response token): {evaluation['held_out_loss_before']:.4f} {before},"
        f" {evaluation['held_out_loss']:.4f} {after}."
    ]
    if "held_out_reward" in evaluation and "held_out_reward_before" in evaluation:
        reward = f" ({_plain(training['reward'])})" if "reward" in training else ""
        lines.append(
            f"Mean reward of answers to held-out prompts{reward}: {evaluation['held_out_reward_before']:.4f} {before},"
            f" {evaluation['held_out_reward']:.4f} {after}."
        )
    return "\n\n".join(lines)


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is, and that cannot become HTML."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{letter}" if letter in "\\`*_[]|#" else letter for letter in escaped)
