"""`module:function`: rewards that users wrote."""

import contextlib
import functools
import importlib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.digests import sha256_file
from sealed_experts.rewards import Reward, Score
from sealed_experts.rewards.making.modules import find_module
from sealed_experts.settings.messages import shown, suggestion

TOTAL = "reward"
_OURS = __name__.partition(".")[0]


class FunctionReward(Reward):
    """A function `f(prompt, response)` that returns a number, or {"reward": number, axis: number, …}.

    The axis with the reward's own name is the whole value. The function's other axes have no share of it.
    """

    module: str
    function: str

    @property
    def name(self) -> str:
        """`module:function`."""
        return f"{self.module}:{self.function}"

    @functools.cached_property
    def callable(self) -> Callable[[str, str], Any]:
        """The function. Its module is imported on first use.

        Raises:
            UserError: the module cannot be imported, or has no function that takes a prompt and a response.
        """
        return _function(_imported(self.module), self.function)

    def options(self) -> dict[str, Any]:
        """Return the options that every reward has. Module and function are in its name."""
        return {"repetition_penalty": self.repetition_penalty}

    def modules(self) -> list[str]:
        """Return the function's module."""
        return [self.module]

    def load(self) -> None:
        """Import the function."""
        _ = self.callable

    def score(self, prompt: str, response: str) -> Score:
        """Return the function's result, not yet checked.

        Raises:
            UserError: the function raised, or returned a mapping without `reward`.
        """
        function = self.callable
        try:
            result = function(prompt, response)
            if isinstance(result, Mapping):
                result = dict(result)  # the user's own type can fail here
        except (Exception, SystemExit, GeneratorExit) as error:
            raise UserError(
                f"reward {self.name}: the function failed for the prompt {shown(prompt)}: {_described(error)}"
            ) from error
        if not isinstance(result, dict):
            return Score(result, {self.name: result})
        axes = {key: value for key, value in result.items() if key != TOTAL}
        if TOTAL not in result or not all(isinstance(axis, str) and axis != self.name for axis in axes):
            keys = ", ".join(repr(key) if type(key) in (str, int) else f"of {type(key).__name__}" for key in result)
            raise UserError(
                f"reward {self.name}: a mapping must give `{TOTAL}`, and axes by names of their own; for the prompt"
                f" {shown(prompt)} its keys are {keys or 'none'}"
            )
        return Score(result[TOTAL], {self.name: result[TOTAL], **axes})


def source_file(module: str) -> Path | None:
    """Return a module's file without running it; None if there is no module or no file."""
    spec = find_module(module)
    file = Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None
    if file is None or not file.is_file():
        return None
    file = file.parent.resolve() / file.name  # a link in this folder counts as a file of it
    here = Path.cwd().resolve()
    return file.relative_to(here) if file.is_relative_to(here) else file


def loaded_code() -> dict[str, str]:
    """Return {module: SHA-256 of its file} of all loaded modules except Python's, installed packages' and ours."""
    installed = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    digests = {}
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or name.partition(".")[0] in (_OURS, "__main__", "__mp_main__"):
            continue
        path = Path(file).resolve()
        if path.is_file() and not any(path.is_relative_to(folder) for folder in installed):
            digests[name] = sha256_file(path)
    return digests


def _imported(module: str) -> ModuleType:
    # Last in the path, so that a file here never takes the place of an installed module.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()
    if (file := source_file(module)) is not None:
        # Python takes old bytecode for a new file of the same size and the same second, such as a restored one.
        with contextlib.suppress(OSError):
            Path(importlib.util.cache_from_source(str(file.absolute()))).unlink()
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit, GeneratorExit) as error:
        raise UserError(f"the reward's module `{module}` does not import: {_described(error)}") from error


def _function(module: ModuleType, name: str) -> Callable[[str, str], Any]:
    function = getattr(module, name, None)
    place = f"`{module.__name__}` ({module.__file__})" if getattr(module, "__file__", None) else f"`{module.__name__}`"
    if function is None:
        known = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise UserError(f"the module {place} has no function `{name}`; {suggestion(name, known)}")
    if not callable(function):
        raise UserError(f"`{name}` in the module {place} is {type(function).__name__}, not a function")
    try:
        inspect.signature(function).bind("prompt", "response")
    except TypeError as error:
        raise UserError(
            f"`{name}` in the module {place} cannot be called as {name}(prompt, response): {error}"
        ) from error
    except ValueError:
        pass  # written in C: its parameters are unknown
    return function


def _described(error: BaseException) -> str:
    """Return an error and its place in the code, in one line."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    text = " ".join(str(error).split())
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _of_user(frame.filename)]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{place}" if text else f"{type(error).__name__}{place}"


def _of_user(file: str) -> bool:
    return file != __file__ and not file.startswith("<") and file != importlib.__file__
