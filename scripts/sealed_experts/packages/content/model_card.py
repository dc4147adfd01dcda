"""The model card: README.md of a package, written from its manifest only."""

from collections.abc import Mapping, Sequence
from typing import Any

from sealed_experts.models.adapters import AdapterKind
from sealed_experts.packages.content.manifest import adapter_of
from sealed_experts.packages.settings import NO_LICENCE

_TRAINING_ROWS = (
    ("steps", "Optimizer steps"),
    ("stopped_reason", "Ended by"),
    ("seed", "Seed"),
    ("started", "Started"),
    ("finished", "Finished"),
)


def model_card(manifest: Mapping[str, Any]) -> str:
    """Return a model card in Markdown. The manifest may lack `payload` and `members`."""
    sections = [
        _title(manifest),
        _adapter(manifest),
        _routing(manifest["routing"], manifest["constraints"]),
        _data(manifest["training"]["datasets"]),
        _training(manifest["training"]),
        _privacy(manifest["privacy"], manifest["training"]),
        _evaluation(manifest["quality"]),
        "## Limits\n\nThe expert answers in the style and within the field of its training data. Its answers can be "
        "wrong. The signature shows who made the package and that it is unaltered, not that it is right.",
        _loading(manifest),
    ]
    return "\n\n".join(sections) + "\n"


def _title(manifest: Mapping[str, Any]) -> str:
    author = f" by {_plain(manifest['author'])}" if manifest["author"] else ""
    named = manifest["licence"] != NO_LICENCE
    licence = f"Licence: {_plain(manifest['licence'])}" if named else "No licence is stated"
    paragraphs = [
        f"# {manifest['name']} {manifest['version']}",
        _plain(manifest["description"]),
        f"An expert{author}. {licence}; see `LICENSE`.",
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _adapter(manifest: Mapping[str, Any]) -> str:
    adapter, base, perf = manifest["adapter"], manifest["base"], manifest["perf"]
    revision = f" at revision `{_plain(base['revision'])}`" if base["revision"] else ""
    quantized = f", quantized by {_plain(base['quantization']['method'])}" if base["quantization"] else ""
    stretched = f", positions stretched by {_plain(base['rope_scaling']['rope_type'])}" if base["rope_scaling"] else ""
    able = ", ".join(manifest["capabilities"]) or "none stated"
    settings = "; ".join(f"{name} {_plain(_value(value))}" for name, value in adapter["settings"].items())
    return (
        f"## Adapter\n\nA `{adapter['kind']}` adapter ({settings}) of"
        f" `{_plain(base['name'])}`{revision} (digest `{base['digest']}`{quantized}{stretched})."
        f" {perf['parameters']:,} parameters, {perf['size']:,} bytes when loaded. Prompt template:"
        f" {manifest['template']}. Capabilities: {able}.\n\n{_serving(adapter_of(manifest))}"
    )


def _serving(adapter: AdapterKind) -> str:
    """Say which engines can serve the adapter, and into what it can be converted."""
    places = [f"{name} ({condition})" if condition else name for name, condition in adapter.serving.items()]
    rank = "" if adapter.lora_rank is None else f" A server must allow rank {adapter.lora_rank}."
    forms = [*(["a part of the base's weights"] if adapter.merges else []), *adapter.converts_to]
    become = f" It can become {' or '.join(forms)}." if forms else ""
    return f"Served by {', '.join(places)}.{rank}{become}"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _routing(routing: Mapping[str, Any], constraints: Mapping[str, Any]) -> str:
    called = ", ".join(_plain(keyword) for keyword in routing["keywords"]) or "no keyword"
    lines = [f"## Routing\n\nCalled by: {called}."]
    if routing["always_active"]:
        lines.append("It also answers questions that call no expert.")
    if routing["exclude"]:
        lines.append(f"Excluded by: {', '.join(_plain(word) for word in routing['exclude'])}.")
    for field, label in (("requires", "It needs"), ("incompatible_with", "It must not be installed with")):
        if constraints[field]:
            # Text in backticks needs no escapes, and the manifest's schema forbids a backtick here.
            lines.append(f"{label} {', '.join(f'`{pattern}`' for pattern in constraints[field])}.")
    return " ".join(lines)


def _data(datasets: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        f"Public records, `{_plain(each['name'])}`, SHA-256 `{each['sha256']}`."
        if "sha256" in each
        else f"Private records, named `{each['hmac_sha256']}` with the owner's key: only the owner can identify them."
        for each in datasets
    ]
    return "\n\n".join(["## Data", *lines])


def _training(training: Mapping[str, Any]) -> str:
    rows = [f"| {label} | {_plain(str(training[field]))} |" for field, label in _TRAINING_ROWS if field in training]
    rows += [f"| `{name}` | {_plain(str(value))} |" for name, value in training["settings"].items()]
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
            f" It covers all stages ({', '.join(stages)}), not only {selected}, which the package holds: {selected} was"
            " chosen by looking at the weights of all."
        )
    return f"## Privacy\n\n{claim} `privacy_receipt.json` holds the details."


def _evaluation(quality: Mapping[str, Any]) -> str:
    if not quality["published"]:
        return f"## Evaluation\n\nWithheld: {_plain(quality['reason'])}."
    rows = [
        f"| {_plain(_measured(each))} | {each['base_value']:.4f} | {each['value']:.4f} | {_ends(each['interval'])} |"
        for each in quality["metrics"]
    ]
    head = "| Measured on held-out records | Base | Expert | Interval |"
    return "\n".join(["## Evaluation\n", head, "| --- | --- | --- | --- |", *rows])


def _measured(metric: Mapping[str, str]) -> str:
    return f"{metric['title']} ({metric['unit']})" if metric["unit"] else metric["title"]


def _ends(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return "too few records"
    return f"{interval['low']:.4f} to {interval['high']:.4f} ({interval['confidence']:.0%})"


def _loading(manifest: Mapping[str, Any]) -> str:
    name = manifest["name"]
    return (
        f"## How to load\n\n```\nsealed-experts verify {name}.tgsp\nsealed-experts unpack {name}.tgsp {name}\n```\n\n"
        "The folder then loads on the base named above:\n\n```python\nfrom peft import PeftModel\n\n"
        f'model = PeftModel.from_pretrained(base, "{name}")\n```'
    )


def _plain(text: str) -> str:
    """Escape text, so that Markdown shows it unchanged and it cannot become HTML."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{letter}" if letter in "\\`*_[]|#" else letter for letter in escaped)
