"""Throughput of supervised fine-tuning in real (non-padding) tokens per second, against named peers.

One contender a process: ours-private, ours, trl (SFTTrainer without privacy), opacus (padded to max_seq_len). All train
LoRA rank 8 on q, k, v and o of the same model, on the same examples, with the same threads and logical batch.
"""

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

THREADS, STEPS, WARMUP_STEPS, LOGICAL_BATCH, MAX_SEQ_LEN, VOCABULARY = 2, 5, 1, 32, 512, 16_000
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def build_model():
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=384,
            intermediate_size=1024,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=1024,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )


def build_examples(count):
    """Lengths log-normal around 130 tokens; the prompt is 20 to 60 % of an example."""
    generator = random.Random(0)
    examples = []
    for _ in range(count):
        length = max(16, min(MAX_SEQ_LEN, int(generator.lognormvariate(4.87, 0.5))))
        prompt = int(length * generator.uniform(0.2, 0.6))
        examples.append(([generator.randrange(3, VOCABULARY) for _ in range(length)], prompt))
    return examples


def run_ours(*, private):
    """Our own loop, whole: draws, physical batches, gradients, journal, optimizer.

    It draws without replacement, as its peers do.
    """

    from tests.loops import KEY, loop_on

    from sealed_experts.models.adapters.lora import Lora
    from sealed_experts.models.attachment import attach_adapter, trainable_parameters
    from sealed_experts.privacy.ledger.journal import Journal
    from sealed_experts.privacy.streams import Stream
    from sealed_experts.training.batches import Example
    from sealed_experts.training.dataset import UnitDataset
    from sealed_experts.training.environment import make_deterministic
    from sealed_experts.training.gradients import PlainGradients, PrivateGradients
    from sealed_experts.training.objectives.sft import Sft, SupervisedFineTuning

    make_deterministic(threads=THREADS)
    rows = build_examples(LOGICAL_BATCH * (STEPS + WARMUP_STEPS))
    dataset = UnitDataset(
        [[[Example(ids=tuple(ids), prompt_length=prompt, unit=index)]] for index, (ids, prompt) in enumerate(rows)]
    )
    model = attach_adapter(build_model().requires_grad_(False), Lora(rank=8, alpha=16), seed=0)
    settings = Sft(
        batch_size=LOGICAL_BATCH, max_steps=STEPS + WARMUP_STEPS, log_steps=1, eval_steps=10**6, learning_rate=1e-4
    )
    stream, objective, parameters = (
        Stream(KEY),
        SupervisedFineTuning(max_seq_len=MAX_SEQ_LEN),
        trainable_parameters(model),
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gradients = PlainGradients(model=model, objective=objective, parameters=parameters)
        if private:
            # The peers sample without replacement; so that all train on the same batches, so does this measurement.
            plan = SimpleNamespace(
                noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=LOGICAL_BATCH, queries={}
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
        loop = loop_on(dataset, model=model, objective=objective, gradients=gradients, settings=settings, folder=folder)
        loop.train()
        logged = [line for line in loop.state.history if "loss" in line]
    first, last = logged[WARMUP_STEPS - 1], logged[-1]
    return last["tokens_seen"] - first["tokens_seen"], last["seconds"] - first["seconds"]


def run_trl():
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(THREADS)
    rows = build_examples(LOGICAL_BATCH * (STEPS + WARMUP_STEPS))
    data = Dataset.from_list([{"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]} for ids, prompt in rows])
    vocabulary = {f"t{index}": index for index in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t0")), pad_token="t0", eos_token="t2"
    )

    class Clock(TrainerCallback):
        def __init__(self):
            self.times = []

        def on_step_end(self, *_, **__):
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
            model=build_model(),
            args=arguments,
            train_dataset=data,
            processing_class=tokenizer,
            peft_config=LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=TARGETS),
            callbacks=[clock],
        ).train()
    tokens = sum(len(ids) for ids, _ in rows[LOGICAL_BATCH * WARMUP_STEPS :])
    return tokens, clock.times[-1] - clock.times[WARMUP_STEPS - 1]


def run_opacus():
    """Opacus as its tutorials use it: every example padded to max_seq_len, full logits, physical batches of 8."""
    import torch
    import torch.nn.functional as F
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer
    from peft import LoraConfig, get_peft_model

    torch.set_num_threads(THREADS)
    rows = build_examples(LOGICAL_BATCH * (STEPS + WARMUP_STEPS))
    model = get_peft_model(build_model(), LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=TARGETS))
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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contender", required=True, choices=CONTENDERS)
    tokens, seconds = CONTENDERS[parser.parse_args().contender]()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"tokens_per_second": round(tokens / seconds, 1), "peak_mb": round(peak)}))


if __name__ == "__main__":
    sys.exit(main())
