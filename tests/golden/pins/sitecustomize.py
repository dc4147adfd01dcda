"""Python loads this file at its start in every process of a recorded run. It pins what should move no recording.

In reproducible mode the key of draws and noise follows from the run's fingerprint, which holds the processor, library
versions and a digest of our own source files. Here it is a function of seed, expert and stage alone, and the digest of
the source files, which packages state, is a constant. Each use is noted in the file ${GOLDEN_PINS}: the recorder fails
where one is missing, so that a function which moved away cannot stop the pinning silently.
"""

import importlib.abc
import importlib.machinery
import os
import sys


def _note(*words):
    with open(os.environ["GOLDEN_PINS"], "a") as file:
        file.write(" ".join(words) + "\n")


def _pin_key(module):
    derive = module.derive_key

    def pinned(seed, expert, stage, _fingerprint):
        _note("key", expert, stage)
        return derive(seed, expert, stage)

    module.derive_key = pinned


def _pin_code(module):
    describe = module.numeric_environment

    def pinned(**given):
        found = describe(**given)
        if "code" not in found:
            raise KeyError("the numeric environment no longer holds the digest of our code")
        _note("code")
        return {**found, "code": "0" * 64}

    module.numeric_environment = pinned


def _pin_root(torch):
    """AdamW's square root: MKL's begins with an approximation (RSQRTPS) that each maker of processors has its own of,
    whatever MKL_CBWR says. numpy's is the nearest float everywhere.
    """
    root = torch.Tensor.sqrt

    def pinned(tensor):
        import numpy

        if tensor.requires_grad or tensor.dtype not in (torch.float32, torch.float64):
            return root(tensor)
        return torch.as_tensor(numpy.sqrt(tensor.numpy()))

    torch.Tensor.sqrt = pinned


PINS = {
    "torch": _pin_root,
    "sealed_experts.training.run": _pin_key,
    "sealed_experts.training.environment": _pin_code,
}


class _Pinning(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in PINS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def execute_and_pin(module):
            execute(module)
            PINS[name](module)

        spec.loader.exec_module = execute_and_pin
        return spec


sys.meta_path.insert(0, _Pinning())
