"""The training loop with simple parts, without the files of a stage."""

import functools

from sealed_experts.privacy.streams import Stream
from sealed_experts.training.batches import physical_batches
from sealed_experts.training.checkpoints import CheckpointFolder
from sealed_experts.training.interruption import Interruption
from sealed_experts.training.loop import Surroundings, TrainingLoop
from sealed_experts.training.processes import Processes
from sealed_experts.training.progress import ProgressFiles
from sealed_experts.training.run import Run
from sealed_experts.training.samplers import Draws, ShuffledSampler

KEY = bytes(32)


def loop_on(dataset, *, model, objective, gradients, settings, folder):
    """Return a loop that draws without replacement, pads with token 0, and writes checkpoints to `folder`."""
    device = next(model.parameters()).device
    run = Run(
        fingerprint="0" * 64,
        checkpoints=CheckpointFolder(folder, fingerprint="0" * 64, keep=2),
        key=KEY,
        accounts=None,
        max_steps=settings.steps(units=len(dataset)),
    )
    sampler = ShuffledSampler(units=len(dataset), batch_size=settings.logical_batch, stream=Stream(KEY))
    return TrainingLoop(
        model=model,
        objective=objective,
        draws=Draws(dataset=dataset, sampler=sampler, stream=run.stream),
        validation=(),
        cut=functools.partial(physical_batches, token_budget=settings.token_budget, pad_id=0, device=device),
        gradients=gradients,
        settings=settings,
        run=run,
        around=Surroundings(
            progress=ProgressFiles(folder, target_epsilon=None),
            interruption=Interruption(),
            processes=Processes(),
        ),
    )
