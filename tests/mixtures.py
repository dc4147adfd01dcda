"""Small mixtures: random adapters, sealed and assembled by the project's own code."""

import functools
import json
from pathlib import Path

from sealed_experts.data.records import write_records
from sealed_experts.data.records.instruction import Instruction
from sealed_experts.files.atomic import write_bytes
from sealed_experts.files.canonical import read_json, write_json
from sealed_experts.files.digests import sha256_bytes
from sealed_experts.files.home import home_folder
from sealed_experts.models.bases import base_reference
from sealed_experts.moe.assembly import Sources, assemble
from sealed_experts.moe.job import MoeJob, MoeMember
from sealed_experts.moe.settings import GatelinkSettings, HeSettings
from sealed_experts.packages.content.linter import CONFIG, WEIGHTS, lint_adapter
from sealed_experts.packages.content.manifest_schema import MANIFEST_FORMAT
from sealed_experts.packages.content.provenance import Origin, provenance_bytes
from sealed_experts.packages.content.receipt import RECEIPT
from sealed_experts.packages.keys.private_keys import PublisherKey, ensure_publisher_key, load_key
from sealed_experts.packages.keys.trust import load_trust
from sealed_experts.packages.settings import RoutingSettings
from sealed_experts.packages.tgsp.package import seal_package
from sealed_experts.privacy.ledger.owner_names import OwnerNames
from sealed_experts.privacy.ledger.published_receipt import receipt_bytes
from sealed_experts.privacy.ledger.receipt_rules import privacy_summary
from sealed_experts.privacy.ledger.releases import ReleaseLog

ROUTING = {
    "banking_expert": RoutingSettings(keywords=("bank", "deposit", "loan")),
    "investment_expert": RoutingSettings(keywords=("portfolio", "stock", "bond")),
    "shared_attention": RoutingSettings(gate="none", always_active=True),
}
DATASETS = {"banking_expert": "banking", "investment_expert": "investment", "shared_attention": "combined"}
DELTA = 1e-5
NAMES = OwnerNames(b"\x07" * 32)


class Workshop:
    """A folder with the layout of `results/`, in which experts are made without training."""

    def __init__(self, folder: Path, base: Path) -> None:
        """Take an empty folder and the path of a base.json."""
        self.folder, self.base = folder, base
        ensure_publisher_key()
        self.data = folder / "data"
        self.sources = Sources(packages=folder / "packages", experts=folder / "experts", base=base)
        self.config = folder / "moe" / "moe_config.json"

    def run(self, *, rank_limit: int = 32, names=tuple(ROUTING)) -> MoeJob:
        members = tuple(MoeMember(name=name, dataset=DATASETS[name], routing=ROUTING[name]) for name in names)
        return MoeJob(
            base="tiny",
            revision=None,
            experts=members,
            he_config=HeSettings(),
            gatelink_config=GatelinkSettings(max_lora_rank=rank_limit),
        )

    def assemble(self, run: MoeJob | None = None) -> dict:
        assemble(
            run or self.run(),
            sources=self.sources,
            output=self.config,
            trust=load_trust(),
            log=ReleaseLog(home_folder()),
        )
        return read_json(self.config)

    def make_data(self) -> None:
        """Write two datasets without a common record, and their combination."""
        records = {
            name: [Instruction.of(instruction=f"{name} {index}?", output="Yes.") for index in range(20)]
            for name in ("banking", "investment")
        }
        records["combined"] = [*records["banking"], *records["investment"]]
        for name, content in records.items():
            write_records(self.data / name / "train.jsonl", content)

    def make_expert(
        self,
        name: str,
        *,
        seed: int = 1,
        receipt: dict | None = None,
        weights: bytes | None = None,
        config: bytes | None = None,
        key=None,
        **manifest,
    ) -> None:
        """Write an expert's checkpoint, selection and sealed package; by default, of a random LoRA adapter."""
        checkpoint = self.folder / "experts" / name / "sft" / "adapter_final.pt"
        write_bytes(checkpoint, b"stands for a checkpoint: nothing of the mixture reads it")
        selection = {
            "expert": name,
            "stage": "sft",
            "adapter": str(checkpoint),
            "metrics": "",
            "reason": "the only stage",
            "candidates": ["sft"],
        }
        write_json(self.folder / "experts" / name / "selection.json", selection)
        if weights is None or config is None:
            made = adapter_files(self.base.parent, seed=seed)
            config, weights = config or made[0], weights or made[1]
            if "base" in manifest:
                reference = base_reference(**manifest["base"])
                config = json.dumps(json.loads(config) | {"base_model_name_or_path": reference}).encode()
        receipt = receipt or private_receipt(name)
        self.seal(name, receipt=receipt, config=config, weights=weights, key=key, **manifest)

    def seal(
        self, name: str, *, receipt: dict, config: bytes, weights: bytes, key: PublisherKey | None, **changes
    ) -> None:
        base = read_json(self.base)
        members = {
            "README.md": b"# An expert for tests",
            "adapter_config.json": config,
            "adapter_model.safetensors": weights,
            RECEIPT: receipt_bytes(receipt),
            "LICENSE": b"No licence.",
        }
        facts = lint_adapter(members)
        manifest = {
            "format_version": MANIFEST_FORMAT,
            "name": name,
            "version": "1.0.0",
            "description": "",
            "author": "",
            "licence": "NOASSERTION",
            "base": {
                **{field: base[field] for field in ("name", "revision", "digest")},
                "quantization": None,
                "rope_scaling": None,
            },
            "adapter": {
                "kind": facts.adapter.kind,
                "settings": facts.adapter.facts(),
                "size": len(members[WEIGHTS]),
                "digest": sha256_bytes(members[WEIGHTS]),
            },
            "template": "alpaca",
            "capabilities": [],
            "routing": {
                "keywords": [],
                "exclude": [],
                "priority": 0,
                "always_active": False,
                "gate_type": "step",
                "match": "word",
            },
            "constraints": {"requires": [], "incompatible_with": [], "load_order": 0, "max_chain": None},
            "training": {
                "settings": {},
                "datasets": [{"hmac_sha256": NAMES.of_data("e" * 64)}],
                "stages": ["sft"],
                "selected_stage": "sft",
                "selection_reason": "the only stage",
                "steps": 3,
                "stopped_reason": "max_steps",
            },
            "quality": {"published": False, "reason": "no measurements"},
            "privacy": privacy_summary(receipt),
            "perf": {"size": facts.tensor_bytes, "parameters": facts.parameters},
        }
        for field, value in changes.items():
            manifest[field] = {**manifest[field], **value} if isinstance(value, dict) else value
        members["provenance.json"] = provenance_bytes(
            manifest,
            subject={path: sha256_bytes(members[path]) for path in (CONFIG, WEIGHTS)},
            stages={"sft": {"settings": {}, "train_digest": "e" * 64}},
            names=NAMES,
            origin=Origin(version="0.1.0"),
        )
        seal_package(self.sources.package(name), manifest=manifest, members=members, key=key or load_key())


def private_receipt(name: str, *, steps: int = 10) -> dict:
    """Return the receipt of a stage that took `steps` noisy steps."""
    from sealed_experts.privacy.ledger.receipt import stage_receipt
    from sealed_experts.privacy.plan import PrivacyPlan

    plan = PrivacyPlan(
        stage="sft",
        unit="record",
        units=100,
        expected_batch_size=10,
        noise_multiplier=1.0,
        max_grad_norm=0.3,
        delta=DELTA,
        target_epsilon=100.0,
        mode="release",
        max_steps=steps,
        steps_within_budget=steps,
    )
    return stage_receipt(plan, steps=steps, key_id=f"key of {name}")


@functools.cache
def adapter_files(base: Path, *, seed: int) -> tuple[bytes, bytes]:
    """Return adapter_config.json and adapter_model.safetensors of a random adapter that changes the base's answers."""
    import torch
    from safetensors.torch import save
    from transformers import AutoModelForCausalLM

    from sealed_experts.models.adapters.lora import Lora
    from sealed_experts.models.attachment import adapter_state, attach_adapter
    from sealed_experts.training.peft_folder import adapter_config_bytes

    model = AutoModelForCausalLM.from_pretrained(base)
    targets = ("c_attn",) if model.config.model_type == "gpt2" else ("q_proj", "v_proj")
    settings = Lora(rank=2, alpha=4, target_modules=targets)
    state = adapter_state(attach_adapter(model, settings, seed=seed))
    random = torch.Generator().manual_seed(seed)
    weights = {key: torch.randn(tensor.shape, generator=random) * 0.5 for key, tensor in state.items()}
    manifest = read_json(base / "base.json")
    name = f"local:{manifest['name']}@sha256:{manifest['digest']}"
    return adapter_config_bytes(settings, base_name=name, revision=None, task_type="CAUSAL_LM"), save(weights)


def edit(config: Path, change) -> None:
    """Change a moe_config.json in place: `change` gets its content."""
    content = json.loads(config.read_text())
    change(content)
    config.write_text(json.dumps(content))
