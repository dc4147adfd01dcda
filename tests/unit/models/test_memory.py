"""What fits into a device's memory is a function of the device and the model, and of nothing that is measured."""

from types import SimpleNamespace

import pytest
import torch

from sealed_experts.models import memory
from tests.tiny import tiny_qwen2

CPU, GPU = torch.device("cpu"), torch.device("cuda")
GIGABYTE = 10**9


def a_model(*, layers, hidden, vocabulary, parameters):
    """Return the parts of a model that the formula reads."""
    config = SimpleNamespace(num_hidden_layers=layers, hidden_size=hidden, vocab_size=vocabulary)
    weights = [SimpleNamespace(numel=lambda: parameters, element_size=lambda: 2)]
    return SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda: config, **vars(config)), parameters=lambda: weights
    )


def budget(monkeypatch, model, *, memory_bytes, device, wish="auto"):
    monkeypatch.setattr(memory, "total_memory", lambda _: memory_bytes)
    return memory.resolve_token_budget(wish, model=model, dtype=torch.bfloat16, device=device)


QWEN = a_model(layers=28, hidden=1536, vocabulary=151_936, parameters=1_543_714_304)  # Qwen2.5-1.5B


@pytest.mark.parametrize(
    ("gigabytes", "tokens"),
    [
        # (memory - 3.09 GB of weights) / 2 / (28 · 1536 · 34 + 24 · 151,936 bytes), down to a power of two
        (80, 4096),
        (150, 8192),
        (25, 2048),
        (4, 256),  # nothing fits: the fewest, and recomputation helps
        (2, 256),
    ],
)
def test_a_gpu_gets_the_power_of_two_that_fits(monkeypatch, gigabytes, tokens):
    assert budget(monkeypatch, QWEN, memory_bytes=gigabytes * GIGABYTE, device=GPU) == tokens
    used = tokens * (28 * 1536 * 34 + 24 * 151_936)
    free = gigabytes * GIGABYTE - 2 * 1_543_714_304
    assert tokens == 256 or used <= free / 2 < 2 * used


def test_a_small_model_on_a_large_gpu_gets_at_most_65536_tokens(monkeypatch):
    small = a_model(layers=2, hidden=64, vocabulary=500, parameters=10_000)
    assert budget(monkeypatch, small, memory_bytes=150 * GIGABYTE, device=GPU) == 65_536


def test_processors_get_small_batches_whatever_their_memory(monkeypatch):
    """With 4096 tokens, a real model learned at two thirds of the speed."""
    assert budget(monkeypatch, QWEN, memory_bytes=1000 * GIGABYTE, device=CPU) == 1024


def test_a_number_of_ones_own_is_taken_as_it_is(monkeypatch):
    assert budget(monkeypatch, QWEN, memory_bytes=GIGABYTE, device=CPU, wish=77) == 77


def test_a_real_model_has_what_the_formula_reads():
    assert memory.resolve_token_budget("auto", model=tiny_qwen2(), dtype=torch.float32, device=CPU) == 1024
