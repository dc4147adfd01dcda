"""Run every benchmark and write RESULTS.md beside this file: medians over rounds, ratios round by round."""

import argparse
import datetime
import sys
from pathlib import Path

from demo_gap import demo_gap
from measuring import machine, median, median_ratio, rounds
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
        "LoRA rank 8 on q, k, v, o of a Qwen2 with 6 layers, width 384 and 16,000 tokens of vocabulary; examples of",
        "log-normal length around 130 tokens, prompts included; logical batch 32, max_seq_len 512, float32, 2 threads.",
        "Real tokens are those that are not padding.",
        "",
        f"| Trainer (medians of {count} rounds) | real tokens/s | peak memory, MB | ours, private: times as fast |",
        "|---|---:|---:|---:|",
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
        "Held-out loss in nats a token, on facts that no training record holds. The last column: how much of the way",
        "from `before` to `without privacy` the private run goes, all other settings the same.",
        "",
        "| Expert | before | without privacy | with privacy | ε at δ = 1e-5 | of the way |",
        "|---|---:|---:|---:|---:|---:|",
        *rows,
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the throughput benchmark")
    count = parser.parse_args().rounds
    lines = ["# Benchmark results", "", f"Measured on {datetime.date.today()}: {machine()}. Made by `make bench`.", ""]
    RESULTS.write_text("\n".join([*lines, *throughput(count), *overhead(), *privacy_cost()]))
    print(RESULTS.read_text())


if __name__ == "__main__":
    sys.exit(main())
