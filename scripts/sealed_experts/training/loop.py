"""The one training loop. Start reading at `TrainingLoop.train`: it trains every objective, private or not.

Its state holds nothing random: the batch and the noise of a step are functions of (key, step). So a resumed run needs
only the weights, the optimizer and the step number, and it continues bit for bit.
"""

import dataclasses
import math
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sealed_experts.errors import UserError, is_out_of_memory
from sealed_experts.models.attachment import adapter_state
from sealed_experts.models.loading import clear_device_memory
from sealed_experts.training.batches import Batch, Example, longest_first
from sealed_experts.training.best import BestValidation
from sealed_experts.training.gradients import GradientSource
from sealed_experts.training.interruption import Interrupted, Interruption
from sealed_experts.training.objective import Objective
from sealed_experts.training.objectives import Stage
from sealed_experts.training.processes import OutOfMemoryTogether, Processes
from sealed_experts.training.progress import ProgressFiles, without_nan
from sealed_experts.training.refusals import not_finite
from sealed_experts.training.run import Run
from sealed_experts.training.samplers import Draws
from sealed_experts.training.schedules import learning_rate
from sealed_experts.training.state import Trained, TrainingState


@dataclass(frozen=True, kw_only=True)
class StepFigures:
    """Figures of one step. They are all functions of private records."""

    loss: float | None
    examples: int
    tokens: int
    learning_rate: float
    grad_norm: float
    epsilon: float | None


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What connects a run to the outside: progress files, interruption, other processes of the job."""

    progress: ProgressFiles
    interruption: Interruption
    processes: Processes


class TrainingLoop:
    """Trains `model`'s adapter on an objective, from its newest checkpoint to the last step."""

    def __init__(
        self,
        *,
        model: Any,
        objective: Objective,
        draws: Draws,
        validation: Sequence[Batch],
        cut: Callable[[Sequence[Example]], list[Batch]],
        gradients: GradientSource,
        settings: Stage,
        run: Run,
        around: Surroundings,
    ) -> None:
        self._model, self._objective, self._draws, self._validation = model, objective, draws, validation
        self._cut, self._gradients, self._settings, self._run = cut, gradients, settings, run
        self._progress, self._interruption, self._processes = around.progress, around.interruption, around.processes
        self._total_steps, self._curve = run.total_steps, run.curve
        self._trained = Trained(
            model=model, objective=objective, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._parameters, self._optimizer = self._trained.parameters, self._trained.optimizer
        self._device = self._parameters[0].device
        self._best = BestValidation.of(settings)
        self.state = TrainingState()
        self._clock = self._saved_at = time.monotonic()
        self._moving = False  # whether the optimizer has begun a step that the state does not hold yet

    def train(self) -> TrainingState:
        """Train to the last step and return the final state.

        Raises:
            Interrupted: a signal came or the parent died; the state is saved.
            UserError: a weight, a gradient or, without privacy, the loss is not finite; the last checkpoint is kept.
            torch.OutOfMemoryError, MemoryError, RuntimeError: no memory is left; the last complete state was saved.
        """
        self.resume()
        self._progress.begin(self.state.history, step=self.state.step, max_steps=self._run.max_steps)
        try:
            with self._processes.together():
                self._stop_if_asked()  # a signal may have come while the base was loaded
            self._validate_if_due()  # before the first step, or if the last run ended before it had validated
            self._clock = self._saved_at = time.monotonic()
            while not self._is_over:
                figures = self.train_step(self.state.step + 1)
                self.advance(figures)
                self.save_if_due()
        except Interrupted:
            self._save()
            raise
        except Exception as error:
            if is_out_of_memory(error):
                traceback.clear_frames(error.__traceback__)  # what the step had allocated
                self._save_in_an_emergency(together=isinstance(error, OutOfMemoryTogether))
            raise
        return self.state

    def result(self) -> dict[str, Any]:
        """Return the final state. If the best weights are kept, it holds those, and `kept` is their validation."""
        final = self._trained.snapshot(self.state)
        best = final.pop("best")
        if best is None:
            return {**final, "kept": None}
        assert self._best is not None, "best weights are kept only with a rule to choose them"
        return {**final, "model_state_dict": best, "kept": self._best.line(self.state.history)}

    @property
    def stopped_early(self) -> bool:
        """Whether the run ended early because validation stopped improving."""
        return self._best is not None and self._best.is_over(self.state.history)

    @property
    def _is_over(self) -> bool:
        return self.state.step >= self._total_steps or self.stopped_early

    def train_step(self, step: int) -> StepFigures:
        """Draw, differentiate, step. The step can be abandoned until the optimizer moves the weights."""
        with self._processes.together():
            self._stop_if_asked()
            examples = self._draws.examples(step)
            # Compute it here: if memory runs out, the state after the previous step is still complete.
            epsilon = self._curve.epsilon_at(step) if self._curve and self._logs(step) else None
            own = self.differentiate(self._share(examples), step=step)
        total, units, tokens = (sum(column) for column in zip(*self._processes.exchange(own), strict=True))
        if not self._settings.privacy.enabled and not math.isfinite(total):
            raise self._not_finite("loss", step)
        release = self._gradients.release(step=step)
        rate = learning_rate(
            step=step,
            total_steps=self._total_steps,
            peak=self._settings.learning_rate,
            warmup_steps=self._settings.warmup_steps,
            schedule=self._settings.schedule,
        )
        norm = self._apply(release.gradients, step=step, rate=rate)
        self._objective.observe(release.queries)
        loss = total / units if units else None
        return StepFigures(
            loss=loss,
            examples=len({example.unit for example in examples}),
            tokens=tokens,
            learning_rate=rate,
            grad_norm=norm,
            epsilon=epsilon,
        )

    def _share(self, examples: Sequence[Example]) -> list[Example]:
        """Return this process's part of a logical batch: whole units, long and short ones for each process."""
        return [row for rows in self._processes.share(longest_first(examples)) for row in rows]

    def differentiate(self, examples: Sequence[Example], *, step: int) -> tuple[float, int, int]:
        """Add up the gradients of these examples; return the sum of the losses, and the number of units and tokens."""
        batches = self._objective.prepare(self._model, self._cut(examples), step=step, stream=self._run.stream)
        losses = []
        for batch in batches:
            losses.append(self._gradients.add(batch))
            self._stop_if_asked()
        values = torch.cat(losses) if losses else torch.zeros(0)
        return float(values.double().sum()), values.numel(), sum(batch.real_tokens for batch in batches)

    def _apply(self, gradients: Sequence[torch.Tensor], *, step: int, rate: float) -> float:
        """Add the regulariser, clip, step the optimizer; return the norm of the gradient before this clip."""
        extra = self._objective.regulariser(self._parameters)
        for index, parameter in enumerate(self._parameters):
            parameter.grad = gradients[index] if extra is None else gradients[index] + extra[index]
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self._settings.max_grad_norm))
        if not math.isfinite(norm):
            raise self._not_finite("gradient", step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._moving = True
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self._parameters):
            raise self._not_finite("weights", step)
        return norm

    def advance(self, figures: StepFigures) -> None:
        """Count the step and log it. The step is complete, and may be saved, once the state holds its log line."""
        now = time.monotonic()
        elapsed, self._clock = now - self._clock, now
        after = dataclasses.replace(
            self.state,
            step=self.state.step + 1,
            examples_seen=self.state.examples_seen + figures.examples,
            tokens_seen=self.state.tokens_seen + figures.tokens,
            seconds=self.state.seconds + elapsed,
        )
        line = self._line(after, figures, elapsed) if self._logs(after.step) else None
        self.state = after
        if line is not None:
            after.history.append(line)
        self._moving = False
        if line is not None:
            self._progress.log(line)
        self._validate_if_due()

    def _logs(self, step: int) -> bool:
        return step == self._total_steps or step % self._settings.log_steps == 0

    def _line(self, state: TrainingState, figures: StepFigures, elapsed: float) -> dict[str, Any]:
        observed = self._processes.exchange(self._objective.observed())
        return without_nan(
            {
                "step": state.step,
                "max_steps": self._total_steps,
                "loss": figures.loss,
                "learning_rate": figures.learning_rate,
                "grad_norm": figures.grad_norm,
                "epsilon": figures.epsilon,
                "examples_seen": state.examples_seen,
                "tokens_seen": state.tokens_seen,
                "tokens_per_second": figures.tokens / elapsed,
                "seconds": state.seconds,
                **self._gradients.describe(),
                **self._objective.figures(observed),
            }
        )

    def _validate_if_due(self) -> None:
        step = self.state.step
        due = step == self._total_steps or step % self._settings.eval_steps == 0
        if not due or any(line["step"] == step and "val_loss" in line for line in self.state.history):
            return
        # Only the first process validates while the others wait: so the figures are the same as with one process.
        line = None
        with self._processes.together():
            if self._processes.is_first:
                figures = self._objective.validate(self._model, self._validation, check=self._stop_if_asked)
                line = without_nan({"step": step, **figures})
        line = self._processes.exchange(line)[0]
        self.state.history.append(line)
        self._progress.log(line)
        if self._settings.keeps_best and self._best and self._best.line(self.state.history) is line:
            self.state.best = adapter_state(self._model)

    def resume(self) -> None:
        saved: dict[str, Any] | None = None
        with self._processes.together():
            if self._processes.is_first:
                saved = self._run.checkpoints.load_newest()
        step = self._processes.exchange(saved and saved["step"])[0]
        if step is None:
            return
        saved = saved or self._run.checkpoints.load(step)
        self.state = self._trained.restore(saved)
        self._gradients.resume(step=self.state.step)
        print(f"resumed after step {self.state.step} of {self._total_steps}", flush=True)

    def save_if_due(self) -> None:
        overdue = time.monotonic() - self._saved_at >= 60 * self._settings.checkpoint_minutes
        due = self._is_over or overdue or self.state.step % self._settings.checkpoint_steps == 0
        if self._processes.exchange(due)[0]:  # clocks differ: the first process decides
            self._save()
        elif self.state.step % self._settings.sync_steps == 0:
            self._compare()

    def _save(self) -> None:
        self._compare()
        with self._processes.together():
            if self._processes.is_first:
                self._run.checkpoints.save(self._trained.snapshot(self.state), step=self.state.step)
        self._saved_at = time.monotonic()
        if self._device.type == "cuda":  # on a CPU it frees nothing, and takes many times longer than the save
            clear_device_memory(self._device)

    def _compare(self) -> None:
        """Stop the run if the processes' weights differ: their next sums would mix gradients of different functions."""
        if self._processes.count > 1:
            self._processes.agree(f"weights and optimizer after step {self.state.step}", self._trained.digest())

    def _stop_if_asked(self) -> None:
        if reason := self._interruption.reason:
            raise Interrupted(f"{reason}; saved after step {self.state.step} of {self._total_steps}")

    def _save_in_an_emergency(self, *, together: bool) -> None:
        """Save after running out of memory.

        The last checkpoint is kept instead if a step is half done, or if other processes do not know of the error:
        then their weights cannot be compared.
        """
        clear_device_memory(self._device)
        if self._moving:
            print("out of memory in the middle of an optimizer step: the last checkpoint is kept", flush=True)
        elif self._processes.count > 1 and not together:
            print("out of memory while processes exchanged: the last checkpoint is kept", flush=True)
        else:
            try:
                self._save()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                print("out of memory: too little is left to save; the last checkpoint is kept", flush=True)
                return
            print(f"out of memory: saved after step {self.state.step}", flush=True)

    def _not_finite(self, what: str, step: int) -> UserError:
        return not_finite(what, step=step, stage=self._settings.feature, learning_rate=self._settings.learning_rate)
