"""Features by name. A feature is one module in the folder of its kind, found in that folder, imported on first use.

For example, the module `lora_fa` in `models/adapters/` defines the class `LoraFa`. The class is the feature: its fields
are the feature's settings, and its methods are the behaviour. No other file has to name it.
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
    """The base class of all features."""

    feature: ClassVar[str]  # the module's name, which a configuration uses
    order: ClassVar[int] = 0  # position in lists: lower first, equal ones by name
    extra: ClassVar[Mapping[str, str]] = {}  # {module it imports: the extra of pyproject.toml that installs it}
    libraries: ClassVar[tuple[str, ...]] = ()  # further packages whose version can change its numbers

    def __init_subclass__(cls, **options: object) -> None:
        """Name the class after its module, however it is imported."""
        super().__init_subclass__(**options)
        if "feature" not in vars(cls):
            cls.feature = cls.__module__.rpartition(".")[2]


Kind = TypeVar("Kind", bound=Feature)


class Features(Mapping[str, type[Kind]], Generic[Kind]):
    """The features of one folder: all its modules, except `__init__`, which defines `base`."""

    def __init__(self, base: type[Kind], *, noun: str) -> None:
        """Make the registry of `base`'s folder; `noun` is what messages call such a feature."""
        self.base, self.noun = base, noun
        self._package = base.__module__
        self._loaded: dict[str, type[Kind]] = {}

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The names of all features, in the order of lists."""
        folder = sys.modules[self._package].__path__
        found = [module.name for module in pkgutil.iter_modules(folder) if not module.ispkg]
        return tuple(sorted(found, key=lambda name: (self[name].order, name)))

    def __getitem__(self, name: str) -> type[Kind]:
        """Return the feature of that name; its module is imported on first use.

        Raises:
            KeyError: there is no such feature.
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
        found = importlib.util.find_spec(path) if name.isidentifier() and not name.startswith("_") else None
        if found is None or found.submodule_search_locations is not None:  # a folder is no feature
            raise KeyError(name)
        wanted = "".join(word.capitalize() for word in name.split("_"))
        feature = getattr(importlib.import_module(path), wanted, None)
        if not (isinstance(feature, type) and issubclass(feature, self.base)):
            raise TypeError(f"{path} must define a class {wanted}, a subclass of {self.base.__name__}")
        if lacking := sorted(getattr(feature, "__abstractmethods__", ())):
            raise TypeError(f"{path}: {wanted} must define {', '.join(lacking)}")
        return feature


def missing_extras(features: Iterable[type[Feature]]) -> dict[str, list[str]]:
    """Return {extra: names of the features that need it} for each extra with a module that is not installed."""
    missing: dict[str, list[str]] = {}
    for feature in dict.fromkeys(features):
        for module, extra in feature.extra.items():
            if not _is_installed(module):
                missing.setdefault(extra, []).append(feature.feature)
    return missing


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that should hold it
        return False


def check_extras(features: Iterable[type[Feature]]) -> None:
    """Check that the packages that these features need are installed.

    Raises:
        UserError: a package is missing; the message says how to install it.
    """
    missing = missing_extras(features)
    if missing:
        needs = "; ".join(f"{', '.join(names)} needs the extra `{extra}`" for extra, names in missing.items())
        install = ",".join(sorted(missing))
        raise UserError(f'{needs}, which is not installed: run pip install -c requirements.txt -e ".[{install}]"')
