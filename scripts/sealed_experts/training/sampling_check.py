"""Before private training with sampled answers: find the passes in which a row's draws have bits of their own.

The prompts are made up: private ones would let the data choose the mechanism. The model keeps only a few of its layers
meanwhile, because layers of one kind run the same kernels on the same shapes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from sealed_experts.models.depth import narrow, shallow
from sealed_experts.privacy.engines.check import moved
from sealed_experts.privacy.streams import Stream
from sealed_experts.training.picking import pick_tokens
from sealed_experts.training.rollouts import Sampling, first_pass, next_pass, on_one_thread_each
from sealed_experts.training.shapes import ALONE, MULTIPLES, Shape, agreeing, bit_prints

_TOKENS = 1024  # of the part of the output head that most passes use
_OWN_TOKENS = 11  # of the made-up prompt; it is shorter for a narrow pass
_FACTOR = 6_364_136_223_846_793_005  # chains the prints of several passes
_NOT_THE_PROMPT = 1 << 20  # seeds of the neighbours' tokens start here


@dataclasses.dataclass
class _Trial:
    """One sampling with made-up prompts, and what it found.

    Attributes:
        rows: rows of its passes.
        own: places of the made-up prompt; other prompts take the rest.
        turn: which other prompts.
        prints: for each place, a print of all its logits, and of some draws.
    """

    rows: int
    own: tuple[int, ...]
    turn: int
    prints: list[int] = dataclasses.field(default_factory=list)
    _last: Any = None

    def first_passes(self, model: Any, *, sampling: Sampling, check: Callable[[], None]) -> None:
        """Run the first two passes of every width."""
        total = torch.zeros(self.rows, dtype=torch.long, device=next(model.parameters()).device)
        for width in reversed(sampling.grid.widths()):
            check()
            decoder, inputs = _first(model, self, width, pad=sampling.pad)
            output = decoder(**inputs, use_cache=True, logits_to_keep=1)
            total = total * _FACTOR + bit_prints(output.logits[:, -1].float()) + _draws(output, sampling)
            inputs = next_pass(inputs, output, _tokens(self, width, model).to(total.device))
            output = decoder(**inputs, use_cache=True, logits_to_keep=1)
            total = total * _FACTOR + bit_prints(output.logits[:, -1].float())
        self.prints, self._last = total.tolist(), (decoder, inputs, output)

    def next_passes(self, model: Any, *, sampling: Sampling, check: Callable[[], None]) -> None:
        """Go on from the narrowest prompts to the length of the longest answer to the widest ones."""
        decoder, inputs, output = self._last
        self._last = None
        total = torch.tensor(self.prints, device=inputs["attention_mask"].device)
        narrowest, *_ = sampling.grid.widths()
        for length in range(narrowest + 2, sampling.grid.longest + sampling.max_new_tokens):
            check()
            inputs = next_pass(inputs, output, _tokens(self, length, model).to(total.device))
            output = decoder(**inputs, use_cache=True, logits_to_keep=1)
            total = total * _FACTOR + bit_prints(output.logits[:, -1].float())
        self.prints = total.tolist()


def find_sampling_shapes(model: Any, *, sampling: Sampling, check: Callable[[], None] = lambda: None) -> Sampling:
    """Return how to sample so that a row's bits are its own; one row at a time if nothing else is safe, and say so.

    Args:
        sampling: how to sample; its shapes are the candidates.
        check: called before each pass; may raise to stop.
    """
    candidates = [shape.rows for shape in sampling.shapes]
    first = None
    # Noise, because LoRA starts with products that are exactly zero. It needs no secret key.
    with shallow(model), moved(model, Stream(bytes(32))):
        for multiple in MULTIPLES:
            tried = dataclasses.replace(sampling, multiple=multiple)
            tried = dataclasses.replace(tried, shapes=_shapes(model, candidates, sampling=tried, check=check))
            if tried.shapes == tuple(map(Shape.free, candidates)):
                return tried
            first = first or tried
    assert first is not None, "there are several multiples"
    if first.shapes == ALONE:
        print("rows of a batch depend on each other here: answers are sampled one at a time", flush=True)
    return first


def _shapes(
    model: Any, candidates: Sequence[int], *, sampling: Sampling, check: Callable[[], None]
) -> tuple[Shape, ...]:
    """Return the safe shapes among passes with these numbers of rows."""
    whole = [_Trial(rows, tuple(range(rows)), 0) for rows in candidates]
    mixed = _mixed(candidates[0], turn=0)

    def run(trials: Sequence[_Trial]) -> None:
        on_one_thread_each(model, lambda trial: trial.first_passes(model, sampling=sampling, check=check), trials)
        with narrow(model, tokens=_TOKENS):  # the head does not see how long a row is, and would take most of the time
            on_one_thread_each(model, lambda trial: trial.next_passes(model, sampling=sampling, check=check), trials)

    run([*whole, *mixed])
    prints: dict[int, list[int | None]] = {trial.rows: list(trial.prints) for trial in whole}
    values = {value for found in prints.values() for value in found}
    values |= {trial.prints[place] for trial in mixed for place in trial.own}
    if len(values) == 1:
        return agreeing(prints)
    # Some places differ. Do they change with their neighbours?
    more = [trial for rows in candidates for turn in (0, 1) for trial in _mixed(rows, turn=turn)]
    run(more)
    for trial in more:
        for place in trial.own:
            if trial.prints[place] != prints[trial.rows][place]:
                prints[trial.rows][place] = None
    return agreeing(prints)


def _mixed(rows: int, *, turn: int) -> list[_Trial]:
    """Return two trials in which the made-up prompt is at every place once, with other neighbours in each turn."""
    return [_Trial(rows, tuple(range(parity, rows, 2)), turn) for parity in (0, 1)]


def _draws(output: Any, sampling: Sampling) -> torch.Tensor:
    """Return a print of what would be drawn at one uniform: it is computed from a row's logits alone."""
    logits = output.logits[:, -1].float()
    half = torch.full((logits.shape[0],), 0.5, dtype=torch.float64, device=logits.device)
    picked, size, log_prob = pick_tokens(logits, half, temperature=sampling.temperature, top_p=sampling.top_p)
    return bit_prints(torch.stack([picked.double(), size.double(), log_prob], dim=1))


def _first(model: Any, trial: _Trial, width: int, *, pad: int) -> tuple[Any, dict[str, Any]]:
    own = min(_OWN_TOKENS, width - 1)
    # Long, short, absent and half long neighbours.
    lengths = (width - 1, 1, 0, width // 2)
    prompts = {}
    for place in range(trial.rows):
        if place in trial.own:
            prompts[place] = _made_up(width, own, model)
        elif length := lengths[(place // 2 + trial.turn) % 4]:
            prompts[place] = _made_up(_NOT_THE_PROMPT + place, length, model)
    shape = Shape(trial.rows, tuple(prompts))
    return first_pass(model, list(prompts.values()), shape, width=width, pad=pad)


def _tokens(trial: _Trial, length: int, model: Any) -> torch.Tensor:
    """Return a made-up token for each row, the same for all rows of the made-up prompt."""
    others = torch.tensor(_made_up(_NOT_THE_PROMPT + length, trial.rows, model))
    others[list(trial.own)] = _made_up(length, 1, model)[0]
    return others


def _made_up(seed: int, count: int, model: Any) -> list[int]:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    chosen: list[int] = torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return chosen
