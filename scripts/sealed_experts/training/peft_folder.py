"""Export an adapter in PEFT's folder format. The bytes depend only on the adapter's content."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save
from transformers import AutoConfig

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import write_bytes
from sealed_experts.files.canonical import read_json
from sealed_experts.models.adapters import ADAPTER, AdapterKind
from sealed_experts.models.bases import base_reference
from sealed_experts.training.checkpoints import load_state
from sealed_experts.training.objectives import Stage, stage_of
from sealed_experts.training.refusals import check_made_with

_ALWAYS = ("base_model_name_or_path", "inference_mode", "peft_type", "revision", "task_type")


def write_peft_folder(adapter_file: Path, *, base_folder: Path, config: Path, weights: Path) -> None:
    """Write `config` (adapter_config.json) and `weights` (adapter_model.safetensors) from a stage's adapter file.

    Names and shapes are first compared with those that PEFT expects on this base, so that the folder loads with
    `PeftModel.from_pretrained`.

    Raises:
        UserError: the adapter does not fit the base, or was trained on another base.
    """
    state = load_state(adapter_file)
    adapter = ADAPTER.parse(state["adapter"])
    tensors = {name: tensor.contiguous() for name, tensor in state["model_state_dict"].items()}
    stage = stage_of(state)
    _check_fit(tensors, adapter, base_folder, adapter_file, stage=stage)
    manifest = read_json(base_folder / "base.json")
    check_made_with(
        adapter_file,
        state,
        needed=f"the base in {base_folder} has {{}}",
        remedy="train it again on this base",
        base_digest=manifest["digest"],
    )
    write_bytes(weights, save({name: tensors[name] for name in sorted(tensors)}))
    revision = manifest["revision"]
    reference = base_reference(name=manifest["name"], revision=revision, digest=manifest["digest"])
    write_bytes(
        config,
        adapter_config_bytes(adapter, base_name=reference, revision=revision, task_type=stage.model_class.task_type),
    )


def adapter_config_bytes(adapter: AdapterKind, *, base_name: str, revision: str | None, task_type: str) -> bytes:
    """Return adapter_config.json: PEFT's content, with sorted keys, and every set as a sorted list.

    It holds the settings of the kind, and what differs from PEFT's defaults: older versions refuse keys that they do
    not know, also if they have the default value.
    """
    config = adapter.peft_config(task_type=task_type, base_name=base_name, revision=revision)
    content, usual = config.to_dict(), type(config)(task_type=task_type).to_dict()
    kept = {*adapter.config_keys.values(), *adapter.marks, *_ALWAYS}
    content["inference_mode"] = True
    canonical = {
        key: _plain(value)
        for key, value in content.items()
        if key != "auto_mapping" and (key in kept or value != usual[key])
    }
    return json.dumps(canonical, indent=2, sort_keys=True).encode() + b"\n"


def _check_fit(
    tensors: dict[str, torch.Tensor],
    adapter: AdapterKind,
    base_folder: Path,
    adapter_file: Path,
    *,
    stage: Stage,
) -> None:
    base_config = AutoConfig.from_pretrained(base_folder, local_files_only=True, **stage.model_options())
    with torch.device("meta"):
        body = stage.model_class.loader().from_config(base_config)
        model = adapter.attach(body, task_type=stage.model_class.task_type)
    expected = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        name = sorted(expected.items() ^ found.items())[0][0]
        raise UserError(f"{adapter_file} does not fit the base in {base_folder}: tensor {name} differs; train it again")


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    # Write the value of PEFT's enumerations: it is what the format defines.
    return str(value.value) if hasattr(value, "value") else value
