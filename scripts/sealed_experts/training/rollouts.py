"""Sample answers to a whole batch of prompts at once, with a KV cache, from keyed uniforms.

A token may depend only on (key, step, unit, position), its prompt and the weights: privacy needs this. But if a uniform
is close to the edge between two tokens, the last bit of a logit decides which one is drawn, and the shape of the batch
can change that bit. So under privacy all forward passes have the same shape, whatever was drawn: prompts are padded to
the longest length that the settings allow, and filler rows complete the last piece. `check_row_independence` checks
that in such passes no row depends on another.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from sealed_experts.models.attachment import decoding
from sealed_experts.privacy.streams import Stream
from sealed_experts.training.policy import ranking

# This many likeliest tokens nearly always hold the nucleus. More are sorted only if they do not.
LIKELIEST = 256


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are sampled.

    Attributes:
        max_new_tokens: longest answer, its end of sequence included.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: probability that the nucleus holds; 1 for all tokens.
        end: the token that ends an answer.
        pad: any token: it fills positions that are not read.
        prompt_tokens: every prompt is padded to this width; none is longer.
        rows: rows in every forward pass, including fillers.
    """

    max_new_tokens: int
    temperature: float
    top_p: float
    end: int
    pad: int
    prompt_tokens: int
    rows: int


@dataclass(frozen=True)
class Sampled:
    """One answer.

    Attributes:
        tokens: the answer; its last token is the end of sequence, unless the answer was cut.
        nucleus: for each token, the size of the nucleus that it was sampled from.
        log_probs: for each token, its log-probability within that nucleus.
        truncated: whether the answer was cut at the longest length.
    """

    tokens: tuple[int, ...]
    nucleus: tuple[int, ...]
    log_probs: tuple[float, ...]
    truncated: bool


@torch.no_grad()
def sample_answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    units: Sequence[int],
    sampling: Sampling,
    stream: Stream,
    step: int,
    check: Callable[[], None] = lambda: None,
) -> list[Sampled]:
    """Return one answer to each prompt.

    Args:
        model: a causal language model; its mode (training or not) does not change.
        prompts: the tokens of each prompt.
        units: the unit of each prompt, all different; a unit names its random numbers.
        sampling: how to sample.
        stream: source of the uniforms, which depend on (unit, `step`).
        step: the step that the answers are for.
        check: called before each token; may raise to stop.
    """
    uniforms = [stream.uniforms(f"rollout/{unit}", step, sampling.max_new_tokens) for unit in units]
    answers: list[Sampled] = []
    with _evaluating(model):
        for start in range(0, len(prompts), sampling.rows):
            piece = slice(start, start + sampling.rows)
            answers += _sample(model, prompts[piece], uniforms=uniforms[piece], sampling=sampling, check=check)
    return answers


def check_row_independence(model: Any, prompts: Sequence[Sequence[int]], *, sampling: Sampling) -> bool:
    """Return whether the draws for a prompt are the same to the last bit, whatever its place and the other rows.

    A few tokens are sampled for the prompts in order, in reverse order, and for the first and last among fillers alone.
    """
    chosen = [list(prompt) for prompt in prompts[: sampling.rows]]
    with _evaluating(model):
        together = _few_draws(model, chosen, sampling)
        backwards = _few_draws(model, chosen[::-1], sampling)
        alone = [_few_draws(model, [prompt], sampling) for prompt in (chosen[0], chosen[-1])]
    return all(
        torch.equal(rows, reverse.flip(0)) and torch.equal(rows[:1], first) and torch.equal(rows[-1:], last)
        for rows, reverse, first, last in zip(together, backwards, *alone, strict=True)
    )


@torch.no_grad()
def _few_draws(model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits at a few positions, [prompts, tokens, vocabulary], and log-probabilities of drawn tokens."""
    device = next(model.parameters()).device
    decoder, inputs = decoding(model, _left_padded(model, prompts, sampling=sampling, device=device))
    half = torch.full((sampling.rows,), 0.5, dtype=torch.float64, device=device)
    logits, log_probs = [], []
    for _ in range(min(3, sampling.max_new_tokens)):
        output = decoder(**inputs, use_cache=True, logits_to_keep=1)
        last = output.logits[:, -1]
        picked, _, log_prob = pick_tokens(last.float(), half, temperature=sampling.temperature, top_p=sampling.top_p)
        logits.append(last[: len(prompts)])
        log_probs.append(log_prob[: len(prompts)])
        inputs = _next_inputs(inputs, output, picked)
    return torch.stack(logits, dim=1), torch.stack(log_probs, dim=1)


def _sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    uniforms: Sequence[np.ndarray],
    sampling: Sampling,
    check: Callable[[], None],
) -> list[Sampled]:
    device = next(model.parameters()).device
    decoder, inputs = decoding(model, _left_padded(model, prompts, sampling=sampling, device=device))
    rows = sampling.rows
    draws = torch.full((rows, sampling.max_new_tokens), 0.5, dtype=torch.float64)
    draws[: len(prompts)] = torch.from_numpy(np.stack(uniforms))
    draws = draws.to(device)
    tokens = torch.full((rows, sampling.max_new_tokens), sampling.pad, dtype=torch.long, device=device)
    nucleus = torch.ones_like(tokens)
    log_probs = torch.zeros(tokens.shape, dtype=torch.float64, device=device)
    lengths = torch.zeros(rows, dtype=torch.long, device=device)
    open_rows = torch.arange(rows, device=device) < len(prompts)
    for position in range(sampling.max_new_tokens):
        check()
        output = decoder(**inputs, use_cache=True, logits_to_keep=1)
        picked, size, log_prob = pick_tokens(
            output.logits[:, -1].float(),
            draws[:, position],
            temperature=sampling.temperature,
            top_p=sampling.top_p,
        )
        tokens[:, position] = torch.where(open_rows, picked, sampling.pad)
        nucleus[:, position], log_probs[:, position] = size, log_prob
        lengths += open_rows
        open_rows = open_rows & (picked != sampling.end)
        if not bool(open_rows.any()):
            break
        inputs = _next_inputs(inputs, output, tokens[:, position])
    answers = _answers(tokens, nucleus, log_probs, lengths=lengths, truncated=open_rows)
    return answers[: len(prompts)]


def pick_tokens(
    logits: torch.Tensor, uniforms: torch.Tensor, *, temperature: float, top_p: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pick one token per row by inverting the cumulative distribution at that row's uniform.

    Args:
        logits: float32 [rows, vocabulary].
        uniforms: float64 [rows], each inside (0, 1).
        temperature: divides the logits; at 0 the likeliest token is its own nucleus, the lowest one among equals.
        top_p: probability that the nucleus holds: the fewest likeliest tokens that reach it.

    Returns:
        For each row the token, the size of the nucleus, and the token's log-probability within it (float64).
    """
    if temperature == 0:
        token = ranking(logits).argmax(1)
        return token, torch.ones_like(token), torch.zeros_like(token, dtype=torch.float64)
    if top_p >= 1.0:
        # No order is needed. A float32 per token is precise enough, because the sums are float64.
        scaled = logits / temperature
        scaled -= scaled.amax(1, keepdim=True)
        mass = _cumulative(scaled.exp())
        token = torch.searchsorted(mass, uniforms[:, None] * mass[:, -1:]).clamp(max=logits.shape[1] - 1)
        log_prob = scaled.gather(1, token).to(torch.float64) - mass[:, -1:].log()
        return token[:, 0], torch.full_like(token[:, 0], logits.shape[1]), log_prob[:, 0]
    log_probs = (logits / temperature).to(torch.float64).log_softmax(1)
    ranks = ranking(log_probs)
    count = min(LIKELIEST, logits.shape[1])
    while True:
        order = ranks.topk(count, dim=1).indices
        likeliest = log_probs.gather(1, order)
        mass = _cumulative(likeliest.exp())
        if count == logits.shape[1] or bool((mass[:, -1] >= top_p).all()):
            break
        count = min(8 * count, logits.shape[1])
    size = ((mass < top_p).sum(1) + 1).clamp(max=count)
    within = mass.gather(1, size[:, None] - 1)
    place = torch.searchsorted(mass, uniforms[:, None] * within)
    place = torch.minimum(place, size[:, None] - 1)
    return order.gather(1, place)[:, 0], size, (likeliest.gather(1, place) - within.log())[:, 0]


def _cumulative(probabilities: torch.Tensor) -> torch.Tensor:
    # cumsum has no deterministic kernel on a GPU.
    return probabilities.cpu().cumsum(1, dtype=torch.float64).to(probabilities.device)


def _left_padded(
    model: Any, prompts: Sequence[Sequence[int]], *, sampling: Sampling, device: torch.device
) -> dict[str, torch.Tensor | Any]:
    width = sampling.prompt_tokens
    ids = torch.full((sampling.rows, width), sampling.pad, dtype=torch.long)
    mask = torch.zeros((sampling.rows, width), dtype=torch.long)
    mask[:, -1] = 1  # a filler row has one token
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    # Models without this argument compute positions from the mask.
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if "position_ids" in inspect.signature(base.forward).parameters:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0).to(device)
    return inputs


def _next_inputs(inputs: dict[str, Any], output: Any, picked: torch.Tensor) -> dict[str, Any]:
    mask = inputs["attention_mask"]
    following = {
        "input_ids": picked[:, None],
        "attention_mask": torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1),
        "past_key_values": output.past_key_values,
    }
    if "position_ids" in inputs:
        following["position_ids"] = inputs["position_ids"][:, -1:] + 1
    return following


def _answers(
    tokens: torch.Tensor,
    nucleus: torch.Tensor,
    log_probs: torch.Tensor,
    *,
    lengths: torch.Tensor,
    truncated: torch.Tensor,
) -> list[Sampled]:
    columns = (tokens.tolist(), nucleus.tolist(), log_probs.tolist(), lengths.tolist(), truncated.tolist())
    return [
        Sampled(tuple(row[:length]), tuple(sizes[:length]), tuple(likelihoods[:length]), cut)
        for row, sizes, likelihoods, length, cut in zip(*columns, strict=True)
    ]


@contextlib.contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode in this block: in training mode, recomputed activations forbid a KV cache."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
