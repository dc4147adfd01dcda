"""Throughput of supervised fine-tuning in real (non-padding) tokens per second, against named peers.

One contender a process: ours-private, ours, trl (SFTTrainer without privacy), opacus (padded to max_seq_len). All train
LoRA rank 8 on q, k, v and o of SmolLM2-135M-Instruct, with the same threads and logical batch, on records of the same
lengths. Under privacy, ours draws each record with the same chance, so its batches vary.
"""

import argparse
import json
import resource
import sys
import tempfile
import time

from trainings import STEPS, TARGETS, THREADS, WARMUP_STEPS, base_folder, pretrained, records, tokenized, train_ours

LOGICAL_BATCH, MAX_SEQ_LEN = 32, 512


def build_pairs() -> list[tuple[str, str]]:
    """Return enough records for every step; lengths are log-normal around 130 tokens, prompts included."""
    count = LOGICAL_BATCH * (STEPS + WARMUP_STEPS)
    return records(count, mean=4.87, spread=0.5, longest=MAX_SEQ_LEN, answered=True)


def run_ours(*, private: bool) -> tuple[int, float]:
    """Our stage `sft`."""
    privacy = {"enabled": private, "noise_multiplier": 1.0, "target_epsilon": 1e6, "delta": 1e-5}
    lines = train_ours(
        "sft",
        build_pairs(),
        batch_size=LOGICAL_BATCH,
        max_steps=STEPS + WARMUP_STEPS,
        max_seq_len=MAX_SEQ_LEN,
        privacy=privacy,
    )
    first, last = lines[WARMUP_STEPS - 1], lines[-1]
    return last["tokens_seen"] - first["tokens_seen"], last["seconds"] - first["seconds"]


def run_trl() -> tuple[int, float]:
    """TRL's trainer, in batches of 8 with accumulation."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(THREADS)
    rows = tokenized(build_pairs())
    data = Dataset.from_list([{"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]} for ids, prompt in rows])

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_end(self, *_: object, **__: object) -> None:
            self.times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=LOGICAL_BATCH // 8,
            max_steps=STEPS + WARMUP_STEPS,
            max_length=MAX_SEQ_LEN,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            train_sampling_strategy="sequential",
        )
        clock = Clock()
        SFTTrainer(
            model=pretrained(),
            args=arguments,
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(base_folder()),
            peft_config=LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=TARGETS),
            callbacks=[clock],
        ).train()
    tokens = sum(len(ids) for ids, _ in rows[LOGICAL_BATCH * WARMUP_STEPS :])
    return tokens, clock.times[-1] - clock.times[WARMUP_STEPS - 1]


def run_opacus() -> tuple[int, float]:
    """Opacus as its tutorials use it: every example padded to max_seq_len, full logits, physical batches of 8."""
    import torch
    import torch.nn.functional as F
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer
    from peft import LoraConfig, get_peft_model

    torch.set_num_threads(THREADS)
    rows = tokenized(build_pairs())
    model = get_peft_model(pretrained(), LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=TARGETS))
    model.train()
    wrapped = GradSampleModule(model, loss_reduction="mean")
    optimizer = DPOptimizer(
        torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=LOGICAL_BATCH,
    )
    times = []
    for step in range(STEPS + WARMUP_STEPS):
        for start in range(0, LOGICAL_BATCH, 8):
            chosen = rows[step * LOGICAL_BATCH + start :][:8]
            ids = torch.zeros((8, MAX_SEQ_LEN), dtype=torch.long)
            labels = torch.full((8, MAX_SEQ_LEN), -100)
            mask = torch.zeros((8, MAX_SEQ_LEN), dtype=torch.long)
            for row, (tokens, prompt) in enumerate(chosen):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                labels[row, prompt : len(tokens)] = torch.tensor(tokens[prompt:])
                mask[row, : len(tokens)] = 1
            logits = wrapped(input_ids=ids, attention_mask=mask).logits[:, :-1]
            losses = F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none").sum(1)
            (losses / (labels[:, 1:] != -100).sum(1)).mean().backward()
            optimizer.signal_skip_step(do_skip=start + 8 < LOGICAL_BATCH)
            optimizer.step()
            optimizer.zero_grad()
        times.append(time.perf_counter())
    tokens = sum(len(ids) for ids, _ in rows[LOGICAL_BATCH * WARMUP_STEPS :])
    return tokens, times[-1] - times[WARMUP_STEPS - 1]


CONTENDERS = {
    "ours-private": lambda: run_ours(private=True),
    "ours": lambda: run_ours(private=False),
    "trl": run_trl,
    "opacus": run_opacus,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contender", required=True, choices=CONTENDERS)
    tokens, seconds = CONTENDERS[parser.parse_args().contender]()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"tokens_per_second": round(tokens / seconds, 1), "peak_mb": round(peak)}))


if __name__ == "__main__":
    sys.exit(main())
