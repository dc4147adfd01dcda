"""Features by name: each is one module in the folder of its kind, found by listing it, imported on first use.

The module `lora_fa` in `models/adapters/` holds the class `LoraFa`, and that is the feature: its fields are the
feature's settings, its methods do the rest. Nothing else has to name it.
"""

import functools
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Generic, TypeVar

from sealed_experts.errors import UserError


class Feature:
    """What every feature has besides its own settings and methods."""

    feature: ClassVar[str]  # its module's name, by which a configuration asks for it
    order: ClassVar[int] = 0  # where lists show it: lower ones first, equals by name
    extra: ClassVar[Mapping[str, str]] = {}  # {module it imports: the extra of pyproject.toml that installs it}
    libraries: ClassVar[tuple[str, ...]] = ()  # packages besides the usual ones whose version decides its numbers


Kind = TypeVar("Kind", bound=Feature)


class Features(Mapping[str, type[Kind]], Generic[Kind]):
    """The features of one folder: the modules beside the one that defines `base`."""

    def __init__(self, base: type[Kind], *, noun: str) -> None:
        """Take the base class, defined in the folder's `__init__`, and what messages call such a feature."""
        self.base, self.noun = base, noun
        self._package = base.__module__
        self._loaded: dict[str, type[Kind]] = {}

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Every feature's name, in the order in which lists show them."""
        folder = sys.modules[self._package].__path__
        found = [module.name for module in pkgutil.iter_modules(folder) if not module.ispkg]
        return tuple(sorted(found, key=lambda name: (self[name].order, name)))

    def __getitem__(self, name: str) -> type[Kind]:
        """Return the feature of that name; its module is imported on first use.

        Raises:
            KeyError: there is none.
        """
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def _load(self, name: str) -> type[Kind]:
        path = f"{self._package}.{name}"
        if not name.isidentifier() or importlib.util.find_spec(path) is None:
            raise KeyError(name)
        wanted = "".join(word.capitalize() for word in name.split("_"))
        feature = getattr(importlib.import_module(path), wanted, None)
        if not (isinstance(feature, type) and issubclass(feature, self.base)):
            raise TypeError(f"{path} must define a class {wanted}, a subclass of {self.base.__name__}")
        if lacking := sorted(getattr(feature, "__abstractmethods__", ())):
            raise TypeError(f"{path}: {wanted} must define {', '.join(lacking)}")
        feature.feature = name
        return feature


def missing_extras(features: Iterable[type[Feature]]) -> dict[str, list[str]]:
    """Return {extra: names of the features that need it} of extras with a module that is not installed."""
    missing: dict[str, list[str]] = {}
    for feature in dict.fromkeys(features):
        for module, extra in feature.extra.items():
            if importlib.util.find_spec(module) is None:
                missing.setdefault(extra, []).append(feature.feature)
    return missing


def check_extras(features: Iterable[type[Feature]]) -> None:
    """Check that the packages which these features need are installed.

    Raises:
        UserError: one is missing; the message says how to install it.
    """
    missing = missing_extras(features)
    if missing:
        needs = "; ".join(f"{', '.join(names)} needs the extra `{extra}`" for extra, names in missing.items())
        install = ",".join(sorted(missing))
        raise UserError(f'{needs}, which is not installed: run pip install -c requirements.txt -e ".[{install}]"')
