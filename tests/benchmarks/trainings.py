"""Trainings of SmolLM2-135M-Instruct to be timed: the model, texts of given lengths, and `train_stage` on them.

Ours goes through the same door as the product: with draws, checks before the first step, journal and checkpoints.
"""

import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import ROOT

sys.path.insert(0, str(ROOT))

THREADS, STEPS, WARMUP_STEPS = 2, 5, 1
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
TEMPLATE = "tokenizer"  # the model's own chat template


def pretrained() -> Any:
    """Return the model, for the peers."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base_folder(), dtype=torch.float32)


def base_folder() -> Path:
    """Return the folder of the fetched model; it is fetched once."""
    from tests.real_model import fetched_smollm2

    shared = Path(tempfile.gettempdir()) / "sealed-experts-benchmarks"
    shared.mkdir(exist_ok=True)
    return fetched_smollm2(shared)


def records(count: int, *, mean: float, spread: float, longest: int, answered: bool) -> list[tuple[str, str]]:
    """Return (question, answer) pairs whose tokens are log-normal in number, template included.

    Args:
        mean: mean of the logarithm of the number of tokens.
        spread: its standard deviation.
        longest: most tokens of a pair.
        answered: whether 40 to 80 % of the tokens are the answer's; otherwise the answer is one word.
    """
    from sealed_experts.data.templates import encode_prompt
    from sealed_experts.models.loading import load_tokenizer

    tokenizer = load_tokenizer(base_folder())
    words = _words(tokenizer)
    around = len(encode_prompt(template=TEMPLATE, instruction=words[0], tokenizer=tokenizer)) - 1
    generator = random.Random(0)
    pairs = []
    for _ in range(count):
        length = min(longest, int(generator.lognormvariate(mean, spread)))
        answer = int(length * generator.uniform(0.4, 0.8)) if answered else 1
        question = max(1, length - answer - around)
        pairs.append(tuple(" ".join(generator.choices(words, k=number)) for number in (question, max(1, answer))))
    return pairs


def _words(tokenizer: Any) -> list[str]:
    """Return words that are one token each, wherever they stand."""
    plain = (word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha() and word.islower())
    return sorted(word for word in plain if all(len(tokenizer.encode(text)) == 1 for text in (word, f" {word}")))


def tokenized(pairs: list[tuple[str, str]]) -> list[tuple[list[int], int]]:
    """Return each pair's tokens and the number of its prompt's, as our own training reads them."""
    from sealed_experts.data.records.instruction import Instruction
    from sealed_experts.models.loading import load_tokenizer

    tokenizer = load_tokenizer(base_folder())
    rows = [
        Instruction.of(instruction=question, output=answer).encoded(
            template=TEMPLATE, tokenizer=tokenizer, max_seq_len=10**6
        )[0]
        for question, answer in pairs
    ]
    return [(list(row.ids), row.prompt_length) for row in rows]


def train_ours(stage: str, pairs: list[tuple[str, str]], *, reward: Any = None, **settings: Any) -> list[dict]:
    """Train a stage; return the lines of its log that have a loss."""
    from sealed_experts.training.objectives.reinforce import PolicyGradient
    from sealed_experts.training.stage import train_stage

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = _job(stage, folder, pairs, settings)

        def objective(materials: Any) -> Any:
            if reward is None:
                return job.settings.objective(materials)
            return PolicyGradient(settings=job.settings, reward=reward, materials=materials)

        train_stage(job, objective)
        lines = [json.loads(line) for line in (job.output.parent / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def _job(stage: str, folder: Path, pairs: list[tuple[str, str]], settings: dict[str, Any]) -> Any:
    from sealed_experts.data.records import write_records
    from sealed_experts.data.records.instruction import Instruction
    from sealed_experts.models.adapters.lora import Lora
    from sealed_experts.settings.checking import parse_group
    from sealed_experts.training.job import StageJob
    from sealed_experts.training.objectives import STAGES

    made = [Instruction.of(instruction=question, output=answer) for question, answer in pairs]
    write_records(folder / "train.jsonl", made)
    write_records(folder / "val.jsonl", made[:1])
    (folder / "stats.json").write_text(json.dumps({"unit": "record", "digest": "0" * 64}))
    always = {"threads": THREADS, "log_steps": 1, "eval_steps": 10**6, "eval_examples": 1}
    return StageJob(
        stage=stage,
        expert="measured",
        seed=0,
        device="cpu",
        template=TEMPLATE,
        adapter=Lora(rank=8, alpha=16, target_modules=tuple(TARGETS)),
        settings=parse_group(STAGES[stage], {**always, **settings}),
        computed={},
        base=base_folder() / "base.json",
        train=folder / "train.jsonl",
        val=folder / "val.jsonl",
        stats=folder / "stats.json",
        start=None,
        checkpoints=folder / stage / "checkpoints",
        output=folder / stage / "adapter.pt",
    )
