"""Small generated models and data."""

import json
from pathlib import Path

QUESTIONS = [
    "What is a loan?",
    "How does interest grow?",
    "What is a bond?",
    "Who keeps a deposit?",
    "Why hold a portfolio?",
    "When is a payment due?",
    "Where is a fee stated?",
]
SENTENCES = ["It is money lent.", "It grows with time.", "It pays a coupon.", "The bank keeps it.", "To spread risk."]


def tiny_qwen2(*, vocab_size: int = 300, seed: int = 0, **overrides):
    """Return a randomly initialised Qwen2 of two small layers."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        **{
            "vocab_size": vocab_size,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            **overrides,
        }
    )
    return Qwen2ForCausalLM(config)


def build_tiny_base(folder: Path, *, seed: int = 0, model=None) -> Path:
    """Write a base folder with a model (by default a tiny Qwen2) and a byte-level tokenizer; return its base.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from sealed_experts.models.completeness import linear_modules
    from sealed_experts.models.manifest import write_base_manifest

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        QUESTIONS + SENTENCES,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<|pad|>", "<|eos|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    folder.mkdir(parents=True)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|eos|>").save_pretrained(
        folder
    )
    words = len(tokenizer.get_vocab())
    model = model or tiny_qwen2(vocab_size=words, seed=seed, pad_token_id=0, eos_token_id=1)
    model.save_pretrained(folder)
    write_base_manifest(folder, name="tiny", revision=None, key="tiny", modules=linear_modules(model))
    return folder / "base.json"


def build_tiny_dataset(folder: Path, *, records: int = 60, unit: str = "record") -> Path:
    """Write train.jsonl, val.jsonl and stats.json of distinct small records; return the folder."""
    from sealed_experts.data.records import write_records
    from sealed_experts.data.records.instruction import Instruction

    folder.mkdir(parents=True, exist_ok=True)
    made = [
        Instruction.of(
            instruction=QUESTIONS[index % len(QUESTIONS)],
            input="" if index % 3 else f"Case {index}.",
            output=" ".join(SENTENCES[(index + k) % len(SENTENCES)] for k in range(1 + index % 4)) + f" No. {index}.",
        )
        for index in range(records + 10)
    ]
    write_records(folder / "train.jsonl", made[:records])
    write_records(folder / "val.jsonl", made[records:])
    (folder / "stats.json").write_text(json.dumps({"unit": unit, "digest": "0" * 64}))
    return folder
