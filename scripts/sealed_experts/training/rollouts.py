"""Sample answers to many prompts at once, with a KV cache, from keyed uniforms.

A token may depend only on (key, step, unit, position), its prompt and the weights: privacy needs this. But if a uniform
is close to the edge between two tokens, the last bit of a logit decides which one is drawn, and the shape of a pass can
change that bit. So a prompt is padded to its own length, rounded up, and prompts of one width are sampled together, in
passes of few different shapes, on one thread each. `find_sampling_shapes` checks before private training that in these
passes no row depends on another.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from sealed_experts.models.attachment import decoding
from sealed_experts.models.positions import shared_positions_beyond
from sealed_experts.privacy.streams import Stream
from sealed_experts.training.picking import pick_tokens
from sealed_experts.training.shapes import MULTIPLES, Grid, Shape, covering, row_counts, up_to_power_of_two

# Fewer rows take as long: the weights have to be read anyway. And below 5 a product may use another kernel.
LEAST_ROWS = 8


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are sampled.

    Attributes:
        max_new_tokens: longest answer, its end of sequence included.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: probability that the nucleus holds; 1 for all tokens.
        end: the token that ends an answer.
        pad: any token: it fills positions that are not read.
        prompt_tokens: no prompt is longer.
        shapes: numbers of rows of a pass, and where a row gets its own bits.
        multiple: widths are multiples of it.
    """

    max_new_tokens: int
    temperature: float
    top_p: float
    end: int
    pad: int
    prompt_tokens: int
    shapes: tuple[Shape, ...]
    multiple: int = MULTIPLES[0]

    @property
    def grid(self) -> Grid:
        """The widths of prompts. One column is always padding: without any, attention takes another path.

        They are few, because every width has passes of its own: padding a prompt to the length of an answer costs less.
        """
        longest = -(-(self.prompt_tokens + 1) // self.multiple) * self.multiple
        step = max(self.multiple, up_to_power_of_two(self.max_new_tokens))
        return Grid(multiple=step, fineness=1, longest=longest)


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


def unchecked_shapes(most_rows: int) -> tuple[Shape, ...]:
    """Return shapes of up to about `most_rows` rows, where no one has to check that rows are independent."""
    return tuple(Shape.free(rows) for rows in row_counts(most_rows, least=LEAST_ROWS))


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
    answers: dict[int, Sampled] = {}

    def sample(piece: "_Piece") -> None:
        uniforms = [
            stream.uniforms(f"rollout/{units[index]}", step, sampling.max_new_tokens) for index in piece.prompts
        ]
        rows = [prompts[index] for index in piece.prompts]
        found = _sample(model, rows, piece=piece, uniforms=uniforms, sampling=sampling, check=check)
        answers.update(zip(piece.prompts, found, strict=True))

    on_one_thread_each(model, sample, _pieces(prompts, sampling=sampling, workers=_workers(model)))
    return [answers[index] for index in range(len(prompts))]


@dataclass(frozen=True)
class _Piece:
    """Prompts that are sampled together: their indices, and the width and shape of the pass."""

    prompts: Sequence[int]
    width: int
    shape: Shape


def _pieces(prompts: Sequence[Sequence[int]], *, sampling: Sampling, workers: int) -> list[_Piece]:
    """Cut prompts into as few pieces as possible, but one for each worker if there are enough prompts."""
    by_width: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_width.setdefault(sampling.grid.width(len(prompt) + 1), []).append(index)
    groups = [(width, by_width[width]) for width in sorted(by_width, reverse=True)]
    least = min(len(shape.places) for shape in sampling.shapes)
    while groups and len(groups) < workers:
        width, longest = max(groups, key=lambda group: len(group[1]))
        if len(longest) <= least:
            break
        half = -(-len(longest) // 2)
        groups.remove((width, longest))
        groups += [(width, longest[:half]), (width, longest[half:])]
    found = []
    for width, waiting in groups:
        for shape in covering(sampling.shapes, len(waiting)):
            room = len(shape.places)
            found.append(_Piece(waiting[:room], width, shape))
            waiting = waiting[room:]
    return found


def on_one_thread_each(model: Any, work: Callable[[Any], None], items: Sequence[Any]) -> None:
    """Do independent work without gradients on several threads, PyTorch using one thread for each.

    With several threads for one pass, the bits of a row depend on its place.
    """
    threads, workers = torch.get_num_threads(), _workers(model)

    def begin() -> None:
        torch.set_num_threads(1)

    @torch.no_grad()
    def run(item: Any) -> None:
        work(item)

    begin()
    try:
        with evaluating(model), ThreadPoolExecutor(workers, initializer=begin) as pool:
            for _ in pool.map(run, items):
                pass
    finally:
        torch.set_num_threads(threads)


def _workers(model: Any) -> int:
    """Return how many passes may run at once: one on a GPU, and one if a pass changes something in the model."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    changing = shared_positions_beyond(getattr(base, "config", None)) is not None
    return 1 if changing or next(model.parameters()).device.type != "cpu" else torch.get_num_threads()


def _sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    piece: _Piece,
    uniforms: Sequence[np.ndarray],
    sampling: Sampling,
    check: Callable[[], None],
) -> list[Sampled]:
    device = next(model.parameters()).device
    rows, places = piece.shape.rows, list(piece.shape.places[: len(prompts)])
    decoder, inputs = first_pass(model, prompts, piece.shape, width=piece.width, pad=sampling.pad)
    draws = torch.full((rows, sampling.max_new_tokens), 0.5, dtype=torch.float64)
    draws[places] = torch.from_numpy(np.stack(uniforms))
    draws = draws.to(device)
    tokens = torch.full((rows, sampling.max_new_tokens), sampling.pad, dtype=torch.long, device=device)
    nucleus = torch.ones_like(tokens)
    log_probs = torch.zeros(tokens.shape, dtype=torch.float64, device=device)
    lengths = torch.zeros(rows, dtype=torch.long, device=device)
    open_rows = torch.zeros(rows, dtype=torch.bool, device=device)
    open_rows[places] = True
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
        inputs = next_pass(inputs, output, tokens[:, position])
    return _answers(tokens[places], nucleus[places], log_probs[places], lengths=lengths[places], cut=open_rows[places])


def first_pass(
    model: Any, prompts: Sequence[Sequence[int]], shape: Shape, *, width: int, pad: int
) -> tuple[Any, dict[str, Any]]:
    """Return the model to generate with, and its inputs for prompts at the places of a shape, padded on the left."""
    device = next(model.parameters()).device
    ids = torch.full((shape.rows, width), pad, dtype=torch.long)
    mask = torch.zeros((shape.rows, width), dtype=torch.long)
    mask[:, -1] = 1  # a filler row has one token
    for row, prompt in zip(shape.places, prompts, strict=False):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    # Models without this argument compute positions from the mask.
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if "position_ids" in inspect.signature(base.forward).parameters:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0).to(device)
    return decoding(model, inputs)


def next_pass(inputs: dict[str, Any], output: Any, picked: torch.Tensor) -> dict[str, Any]:
    """Return the inputs of the pass for the next token, [rows]."""
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
    cut: torch.Tensor,
) -> list[Sampled]:
    columns = (tokens.tolist(), nucleus.tolist(), log_probs.tolist(), lengths.tolist(), cut.tolist())
    return [
        Sampled(tuple(row[:length]), tuple(sizes[:length]), tuple(likelihoods[:length]), truncated)
        for row, sizes, likelihoods, length, truncated in zip(*columns, strict=True)
    ]


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode in this block: in training mode, recomputed activations forbid a KV cache."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
