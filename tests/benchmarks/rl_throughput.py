"""Steps per second of REINFORCE against TRL's RLOO and GRPO trainers, generation and update told apart.

One contender a process: ours, ours-private, trl-rloo, trl-grpo. All train LoRA rank 8 on q, k, v and o of the same
model with the same reward, prompts of the same lengths, 32 answers of at most 48 tokens a step, temperature 1, top_p 1.
"""

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from sft_throughput import TARGETS, THREADS, VOCABULARY, build_model

STEPS, WARMUP_STEPS, ANSWERS, LONGEST_PROMPT, NEW_TOKENS = 5, 1, 32, 120, 48


class Clock:
    """Adds up the time spent inside a function."""

    def __init__(self):
        self.seconds = 0.0

    def around(self, function):
        def timed(*arguments, **keywords):
            started = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


def build_prompts(count):
    """Lengths log-normal around 40 tokens."""
    generator = random.Random(0)
    lengths = [max(8, min(LONGEST_PROMPT, int(generator.lognormvariate(3.7, 0.4)))) for _ in range(count)]
    return [[generator.randrange(3, VOCABULARY) for _ in range(length)] for length in lengths]


def build_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"t{index}": index for index in range(VOCABULARY)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="t0", eos_token="t2")


def share_of_even(text):
    words = text.split()
    return sum(word[-1] in "02468" for word in words) / max(1, len(words))


def run_ours(*, private):
    """Our own loop, whole: draws, rollouts, rewards, gradients, journal, optimizer.

    It draws without replacement, as its peers do.
    """

    from tests.loops import KEY, loop_on

    from sealed_experts.models.adapters.lora import Lora
    from sealed_experts.models.attachment import attach_adapter, trainable_parameters
    from sealed_experts.privacy.ledger.journal import Journal
    from sealed_experts.privacy.plan import plan_stage
    from sealed_experts.privacy.settings import PrivacySettings
    from sealed_experts.privacy.streams import Stream
    from sealed_experts.rewards import Score
    from sealed_experts.training.batches import Example
    from sealed_experts.training.dataset import UnitDataset
    from sealed_experts.training.environment import make_deterministic
    from sealed_experts.training.gradients import PlainGradients, PrivateGradients
    from sealed_experts.training.objective import Materials
    from sealed_experts.training.objectives.reinforce import PolicyGradient, Reinforce
    from sealed_experts.training.progress import ProgressFiles

    class Even:
        name = "even"
        weights = {"even": 1.0}  # noqa: RUF012

        def score(self, prompt, response):
            value = share_of_even(response)
            return Score(value, {"even": value})

    make_deterministic(threads=THREADS)
    prompts = build_prompts(ANSWERS * (STEPS + WARMUP_STEPS))
    dataset = UnitDataset(
        [[[Example(ids=(*ids, 2), prompt_length=len(ids), unit=unit)]] for unit, ids in enumerate(prompts)]
    )
    model = attach_adapter(build_model().requires_grad_(False), Lora(rank=8, alpha=16), seed=0)
    settings = Reinforce(
        rollout_batch_size=ANSWERS,
        total_steps=STEPS + WARMUP_STEPS,
        max_new_tokens=NEW_TOKENS,
        temperature=1.0,
        top_p=1.0,
        max_seq_len=LONGEST_PROMPT + NEW_TOKENS,
        eval_steps=10**6,
        privacy=PrivacySettings(enabled=private, target_epsilon=1e6, delta=1e-5),
    )
    stream, parameters = Stream(KEY), trainable_parameters(model)
    materials = Materials(model=model, tokenizer=build_tokenizer(), pad_id=0, seed=0)
    objective = PolicyGradient(settings=settings, reward=Even(), materials=materials)
    clock = Clock()
    objective.prepare = clock.around(objective.prepare)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gradients = PlainGradients(model=model, objective=objective, parameters=parameters)
        if private:
            plan = plan_stage(
                settings.privacy,
                stage="reinforce",
                units=len(dataset),
                unit="record",
                expected_batch_size=ANSWERS,
                max_steps=settings.total_steps,
                queries=settings.query_noise(),
            )
            journal = Journal.open(folder / "journal", fingerprint="0" * 64, key_id="0" * 32)
            gradients = PrivateGradients(
                model=model,
                objective=objective,
                parameters=parameters,
                plan=plan,
                stream=stream,
                journal=journal,
                engine="hooks",
            )
        times, generating = [], []

        class Marking(ProgressFiles):
            def log(self, line):
                super().log(line)
                if "loss" in line:
                    times.append(time.perf_counter())
                    generating.append(clock.seconds)

        loop_on(
            dataset,
            model=model,
            objective=objective,
            gradients=gradients,
            settings=settings,
            folder=folder,
            progress=Marking(folder, target_epsilon=None),
        ).train()
    return times, generating


def run_trl(kind):
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    torch.set_num_threads(THREADS)
    configure, trainer_class = {"rloo": (RLOOConfig, RLOOTrainer), "grpo": (GRPOConfig, GRPOTrainer)}[kind]
    # Two answers a prompt, the fewest that either trainer takes: as many answers a step as ours, to half the prompts.
    prompts = build_prompts(ANSWERS * (STEPS + WARMUP_STEPS) // 2)
    data = Dataset.from_list([{"prompt": " ".join(f"t{token}" for token in ids)} for ids in prompts])
    clock, times, generating = Clock(), [], []

    class Marking(TrainerCallback):
        def on_step_end(self, *_, **__):
            times.append(time.perf_counter())
            generating.append(clock.seconds)

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
            model=build_model(),
            reward_funcs=lambda completions, **_: [share_of_even(text) for text in completions],
            args=arguments,
            train_dataset=data,
            processing_class=build_tokenizer(),
            peft_config=LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=TARGETS),
            callbacks=[Marking()],
        )
        trainer._generate = clock.around(trainer._generate)
        trainer.train()
    return times, generating


CONTENDERS = {
    "ours-private": lambda: run_ours(private=True),
    "ours": lambda: run_ours(private=False),
    "trl-rloo": lambda: run_trl("rloo"),
    "trl-grpo": lambda: run_trl("grpo"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contender", required=True, choices=CONTENDERS)
    times, generating = CONTENDERS[parser.parse_args().contender]()
    seconds = (times[-1] - times[WARMUP_STEPS - 1]) / STEPS
    generation = (generating[-1] - generating[WARMUP_STEPS - 1]) / STEPS
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures = {"steps_per_second": 1 / seconds, "generation": generation, "update": seconds - generation}
    print(json.dumps({name: round(value, 4) for name, value in figures.items()} | {"peak_mb": round(peak)}))


if __name__ == "__main__":
    sys.exit(main())
