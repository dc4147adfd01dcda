"""Losses at response positions: PyTorch's cross entropy, to the last bit of its parts, with less memory."""

import pytest
import torch

from sealed_experts.training.response import ResponseLogits


def response(logits: torch.Tensor, tokens: torch.Tensor) -> ResponseLogits:
    count = len(tokens)
    return ResponseLogits(
        logits=logits,
        tokens=tokens,
        real=torch.ones(count, dtype=torch.bool),
        row=torch.zeros(count, dtype=torch.long),
        counts=torch.tensor([count]),
    )


@pytest.fixture
def made() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = 5 * torch.randn(64, 500, generator=generator)
    return logits.requires_grad_(), torch.randint(500, (64,), generator=generator), torch.rand(64, generator=generator)


def test_losses_and_gradients_are_those_of_autograd_to_the_last_bit(made) -> None:
    logits, tokens, weights = made
    ours = response(logits, tokens).losses()
    written_out = logits.logsumexp(-1) - logits.gather(-1, tokens[:, None])[:, 0]
    assert torch.equal(ours, written_out)
    mine, theirs = (torch.autograd.grad((losses * weights).sum(), logits)[0] for losses in (ours, written_out))
    assert torch.equal(mine, theirs)


def test_losses_are_cross_entropy(made) -> None:
    logits, tokens, _ = made
    expected = torch.nn.functional.cross_entropy(logits, tokens, reduction="none")
    torch.testing.assert_close(response(logits, tokens).losses(), expected)
    gradient = torch.autograd.grad(response(logits, tokens).losses().sum(), logits)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), logits)[0])


def test_inside_vmap_each_row_gets_its_own_gradient(made) -> None:
    logits, tokens, _ = made

    def loss(row: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        return response(row, token).losses().sum()

    rows, row_tokens = logits.detach().view(16, 4, 500), tokens.view(16, 4)
    together = torch.vmap(torch.func.grad(loss))(rows, row_tokens)
    torch.testing.assert_close(together.flatten(0, 1), torch.autograd.grad(loss(logits, tokens), logits)[0])
