"""Steps per second of REINFORCE against TRL's RLOO and GRPO trainers, generation and update told apart.

One contender a process: ours, ours-private, trl-rloo, trl-grpo. All train LoRA rank 8 on q, k, v and o of
SmolLM2-135M-Instruct with the same reward, prompts of the same lengths, 16 answers of at most 48 tokens a step,
temperature 1, top_p 1. Under privacy, ours draws each prompt with the same chance, so its batches vary.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from trainings import STEPS, TARGETS, THREADS, WARMUP_STEPS, base_folder, pretrained, records, train_ours

ANSWERS, LONGEST_PROMPT, NEW_TOKENS = 16, 120, 48


class Clock:
    """Notes how long each call of a function takes."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **keywords: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                self.seconds.append(time.perf_counter() - started)

        return timed


def build_pairs(count: int) -> list[tuple[str, str]]:
    """Return prompts whose lengths are log-normal around 40 tokens."""
    return records(count, mean=3.7, spread=0.4, longest=LONGEST_PROMPT, answered=False)


def run_ours(*, private: bool) -> dict[str, float]:
    """Our stage `reinforce`."""
    from tests.rewards import Vowels

    from sealed_experts.training.scoring import Scorer

    clock = Clock()
    Scorer.roll_out = clock.around(Scorer.roll_out)  # type: ignore[method-assign]
    lines = train_ours(
        "reinforce",
        build_pairs(ANSWERS * (STEPS + WARMUP_STEPS)),
        reward=Vowels(),
        rollout_batch_size=ANSWERS,
        total_steps=STEPS + WARMUP_STEPS,
        max_new_tokens=NEW_TOKENS,
        max_seq_len=LONGEST_PROMPT + NEW_TOKENS,
        temperature=1.0,
        top_p=1.0,
        privacy={"enabled": private, "noise_multiplier": 1.0, "target_epsilon": 1e6, "delta": 1e-5},
    )
    seconds = (lines[-1]["seconds"] - lines[WARMUP_STEPS - 1]["seconds"]) / STEPS
    # Under privacy, checks before the first step sample too; the last calls are those of the steps.
    return {"seconds": seconds, "generation": sum(clock.seconds[-STEPS:]) / STEPS}


def run_trl(kind: str) -> dict[str, float]:
    """One of TRL's trainers, with two answers a prompt, the fewest that it takes: half as many prompts as ours."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from tests.rewards import Vowels
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    torch.set_num_threads(THREADS)
    reward = Vowels()
    configure, trainer_class = {"rloo": (RLOOConfig, RLOOTrainer), "grpo": (GRPOConfig, GRPOTrainer)}[kind]
    pairs = build_pairs(ANSWERS * (STEPS + WARMUP_STEPS) // 2)
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": question}]} for question, _ in pairs])
    clock, times = Clock(), []

    class Marking(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = configure(
            output_dir=folder,
            per_device_train_batch_size=ANSWERS,
            gradient_accumulation_steps=1,
            num_generations=2,
            max_completion_length=NEW_TOKENS,
            temperature=1.0,
            top_p=1.0,
            beta=0.01,
            learning_rate=1e-5,
            max_steps=STEPS + WARMUP_STEPS,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
        )
        trainer = trainer_class(
            model=pretrained(),
            reward_funcs=lambda completions, **_: [reward.score("", one[-1]["content"]).value for one in completions],
            args=arguments,
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(base_folder()),
            peft_config=LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=TARGETS),
            callbacks=[Marking()],
        )
        trainer._generate = clock.around(trainer._generate)
        trainer.train()
    return {"seconds": (times[-1] - times[WARMUP_STEPS - 1]) / STEPS, "generation": sum(clock.seconds[-STEPS:]) / STEPS}


CONTENDERS = {
    "ours-private": lambda: run_ours(private=True),
    "ours": lambda: run_ours(private=False),
    "trl-rloo": lambda: run_trl("rloo"),
    "trl-grpo": lambda: run_trl("grpo"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contender", required=True, choices=CONTENDERS)
    found = CONTENDERS[parser.parse_args().contender]()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures = {
        "steps_per_second": 1 / found["seconds"],
        "generation": found["generation"],
        "update": found["seconds"] - found["generation"],
    }
    print(json.dumps({name: round(value, 4) for name, value in figures.items()} | {"peak_mb": round(peak)}))


if __name__ == "__main__":
    sys.exit(main())
