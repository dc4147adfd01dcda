"""Run every benchmark and write RESULTS.md beside this file: medians over rounds, ratios round by round."""

import argparse
import datetime
import sys
from pathlib import Path

from demo_gap import demo_gap
from measuring import machine, median, median_ratio, rounds
from reward_gain import reward_gain
from sealing import CONTENDERS as SEALERS
from sealing import sealing
from workflow_overhead import workflow_overhead

RESULTS = Path(__file__).with_name("RESULTS.md")
CONTENDERS = {
    "ours-private": "this project, under privacy",
    "ours": "this project, without privacy",
    "trl": "TRL SFTTrainer, without privacy",
    "opacus": "Opacus, padded to max_seq_len, under privacy",
}


def throughput(count: int) -> list[str]:
    """Measure supervised fine-tuning and return its section."""
    results = rounds("sft_throughput.py", list(CONTENDERS), count=count)
    rows = [
        f"| {title} | {median(results[name], 'tokens_per_second'):,.0f} | {median(results[name], 'peak_mb'):,.0f} "
        f"| {median_ratio(results['ours-private'], results[name], 'tokens_per_second'):.2f} |"
        for name, title in CONTENDERS.items()
    ]
    return [
        "## Supervised fine-tuning",
        "",
        "LoRA rank 8 on q, k, v, o of SmolLM2-135M-Instruct; records of log-normal length around 130 tokens, prompts",
        "included; logical batch 32, max_seq_len 512, float32, 2 threads. Ours goes through `train_stage`, with its",
        "checks. Real tokens are those that are not padding.",
        "",
        f"| Trainer (medians of {count} rounds) | real tokens/s | peak memory, MB | ours, private: times as fast |",
        "|---|---:|---:|---:|",
        *rows,
        "",
    ]


RL_CONTENDERS = {
    "ours-private": "this project, under privacy",
    "ours": "this project, without privacy",
    "trl-rloo": "TRL RLOOTrainer, without privacy",
    "trl-grpo": "TRL GRPOTrainer, without privacy",
}


def rl_throughput(count: int) -> list[str]:
    """Measure policy gradients and return their section."""
    results = rounds("rl_throughput.py", list(RL_CONTENDERS), count=count)
    rows = [
        f"| {title} | {median(results[name], 'steps_per_second'):.3f} | {median(results[name], 'generation'):.2f} "
        f"| {median(results[name], 'update'):.2f} | {median(results[name], 'peak_mb'):,.0f} "
        f"| {median_ratio(results['ours'], results[name], 'steps_per_second'):.2f} |"
        for name, title in RL_CONTENDERS.items()
    ]
    return [
        "## Policy gradients",
        "",
        "The same model and adapter; prompts of log-normal length around 40 tokens; 16 sampled answers of at most 48",
        "tokens a step, temperature 1, top_p 1, KL against the start, float32, 2 threads. Seconds a step: generation",
        "and the rest. TRL's trainers take two answers a prompt at least, so theirs answer half as many prompts.",
        "",
        f"| Trainer (medians of {count} rounds) | steps/s | generation, s | update, s | peak memory, MB "
        "| ours, without privacy: times as fast |",
        "|---|---:|---:|---:|---:|---:|",
        *rows,
        "",
    ]


def gains() -> list[str]:
    """Measure what the second stage gains in the demo and return its section."""
    rows = [
        f"| {row['expert']} | {row['way']} | {row['before']:.3f} | {row['after']:.3f} "
        f"| {row['gain']['mean']:+.3f} ({row['gain']['low']:+.3f} to {row['gain']['high']:+.3f}) | {row['kl']:.2f} "
        f"| {row['perplexity']:+.1%} | {row['cut'][0]:.0%} → {row['cut'][1]:.0%} "
        f"| {'–' if row['epsilon'] is None else format(row['epsilon'], '.2f')} "
        f"| {'yes' if row['counts'] else 'no'} |"
        for row in reward_gain()
    ]
    return [
        "## What REINFORCE gains in the demo",
        "",
        "Mean reward of sampled answers to held-out prompts, before and after, with the same draws; the gain's 95 %",
        "interval; KL from the start in nats/token; the change of perplexity; cut answers; ε of both stages at δ =",
        "1e-5. A gain counts with its interval above zero, KL at most 0.5, a perplexity at most 5 % worse and cut",
        "answers not more frequent. `without` is config/without-privacy.yaml.",
        "",
        "| Expert | privacy | before | after | gain | KL | perplexity | cut | ε | counts |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---|",
        *rows,
        "",
    ]


def overhead() -> list[str]:
    """Measure what Snakemake itself costs and return its section."""
    return [
        "## The workflow around it",
        "",
        "| What | seconds |",
        "|---|---:|",
        *(f"| {title} | {seconds:.1f} |" for title, seconds in workflow_overhead().items()),
        "",
    ]


def privacy_cost() -> list[str]:
    """Measure what privacy costs the demo's experts and return its section."""
    rows = [
        f"| {expert} | {figures['before']:.2f} | {figures['without privacy']:.2f} | {figures['with privacy']:.2f} "
        f"| {figures['ε']:.2f} | {100 * figures['closed']:.0f} % |"
        for expert, figures in demo_gap().items()
    ]
    return [
        "## What privacy costs the demo",
        "",
        "Held-out loss in nats per token, on facts that no training record holds. The last column: how much of the way",
        "from `before` to `without privacy` the private run goes, all other settings the same.",
        "",
        "| Expert | before | without privacy | with privacy | ε at δ = 1e-5 | of the way |",
        "|---|---:|---:|---:|---:|---:|",
        *rows,
        "",
    ]


def sealed(count: int) -> list[str]:
    """Measure sealing and verifying and return their section."""
    rows = [
        f"| {size} | {SEALERS[name]} | {median(results[name], 'seconds'):.3f} "
        f"| {median(results[name], 'peak_mb'):,.0f} "
        f"| {median_ratio(results[name], results['hashlib'], 'seconds'):.2f} |"
        for size, results in sealing(count).items()
        for name in results
    ]
    return [
        "## Sealing and verifying",
        "",
        "A LoRA adapter of float32 weights, neither compressed nor encrypted, signed with Ed25519 and ML-DSA-65; the",
        "file is in the cache. Sealing hashes and lints the adapter, writes and syncs the package, and verifies it.",
        "model-signing signs a folder of the same adapter with ECDSA P-256.",
        "",
        f"| Adapter | What (medians of {count} rounds) | seconds | peak memory, MB | times hashing alone |",
        "|---|---|---:|---:|---:|",
        *rows,
        "",
    ]


CHECKPOINTED = {
    "sft": "supervised fine-tuning, as above",
    "reinforce": "policy gradients, as above",
    "small": "steps of some milliseconds",
    "large": "a checkpoint of 74 million trainables",
}


def checkpoints(count: int) -> list[str]:
    """Measure what checkpoints cost and return their section."""
    results = rounds("checkpoint_cost.py", list(CHECKPOINTED), count=count)
    rows = [
        f"| {title} | {1000 * median(results[name], 'save'):,.0f} | {median(results[name], 'interval'):,.1f} "
        f"| {100 * median(results[name], 'share'):.2f} % |"
        for name, title in CHECKPOINTED.items()
    ]
    return [
        "## Checkpoints",
        "",
        "A save serialises, digests, writes, syncs and renames weights, optimizer and history. The interval is the",
        "default one, 250 steps (100 of policy gradients) or 10 minutes, whichever is shorter; in the last row, the",
        "shortest one at which such a save is 1 % of the time.",
        "",
        f"| Training (medians of {count} rounds) | a save, ms | interval, s | share of the time |",
        "|---|---:|---:|---:|",
        *rows,
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the throughput benchmark")
    count = parser.parse_args().rounds
    lines = ["# Benchmark results", "", f"Measured on {datetime.date.today()}: {machine()}. Made by `make bench`.", ""]
    sections = [*throughput(count), *rl_throughput(count), *checkpoints(count), *overhead(), *privacy_cost(), *gains()]
    sections += sealed(count)
    RESULTS.write_text("\n".join([*lines, *sections]))
    print(RESULTS.read_text())


if __name__ == "__main__":
    sys.exit(main())
