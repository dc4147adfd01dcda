"""Several prepared datasets together. Every record stays on the side of the split that it has in its own dataset."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from sealed_experts.data.records import read_records
from sealed_experts.data.rows import TEST, TRAIN, VAL, BadRow, Row
from sealed_experts.data.sources import Source
from sealed_experts.errors import UserError
from sealed_experts.settings.fields import Distinct, setting
from sealed_experts.settings.messages import Mistake, listed, shown, suggestion


class Combined(Source):
    """Several other datasets together; each record keeps the side of the split that it has in its own dataset."""

    source: Literal["combined"] = setting("Other datasets.", default="combined")
    of: Distinct[str] = setting("The datasets to combine.", min_length=1)

    recipe: ClassVar[int] = 2
    order: ClassVar[int] = 1

    def read(self, *, parts: Sequence[Path] = ()) -> Iterator[Row | BadRow]:
        """Yield the prepared records of `parts`, one folder for each dataset in `of`, in that order.

        Raises:
            UserError: the folders do not match the datasets, or a dataset is not prepared.
        """
        folders = {folder.name: folder for folder in parts}
        if folders.keys() != set(self.of) or len(parts) != len(self.of):
            raise UserError(
                f"a combined dataset of {', '.join(self.of)} got the folders {', '.join(map(str, parts)) or 'none'}"
            )
        for side in (TRAIN, VAL, TEST):
            for name in self.of:
                path = folders[name] / f"{side}.jsonl"
                if side == TEST and not path.exists():
                    continue
                for line, record in enumerate(read_records(path), 1):
                    yield Row(str(path), line, record, side=side)

    def count_upper_bound(self, datasets: Mapping[str, Source]) -> int | None:
        """Return the sum of the parts' bounds; None if a part has none."""
        bounds = [datasets[name].count_upper_bound(datasets) if name in datasets else None for name in self.of]
        known = [bound for bound in bounds if bound is not None]
        return sum(known) if len(known) == len(bounds) else None

    def parts(self) -> tuple[str, ...]:
        """`of`."""
        return self.of

    def places(self, root: Path) -> Iterator[tuple[str, str]]:
        """Yield nothing: its parts yield their places."""
        yield from ()

    def mistakes(
        self, name: str, datasets: Mapping[str, Source], *, names: Sequence[str], root: Path
    ) -> Iterator[Mistake]:
        """Yield parts that do not exist, occur twice, do not fit, or forbid what the combination would publish."""
        for place, part in enumerate(self.of):
            if part not in names:
                others = [other for other in names if other != name]
                text = f"{shown(part)} is not a dataset; {suggestion(part, others)}"
                yield Mistake(("datasets", name, "of", place), text, involves=(("datasets", part),))
        leaves = _leaves(name, datasets, ())
        if leaves is None:
            yield Mistake(("datasets", name, "of"), f"the dataset is combined of itself, through {listed(self.of)}")
            return
        twice = sorted({leaf for leaf in leaves if leaves.count(leaf) > 1})
        if twice:
            yield Mistake(
                ("datasets", name, "of"), f"{listed(twice)} would come in more than once; name each only once"
            )
        kinds = {leaf: datasets[leaf].record_kind() for leaf in leaves if leaf in datasets}
        if len(set(kinds.values())) > 1:
            held = ", ".join(f"`{leaf}`: {kind}" for leaf, kind in kinds.items())
            yield Mistake(
                ("datasets", name, "of"),
                f"its parts hold records of different kinds ({held}), and a stage learns from one kind; combine"
                " datasets of one `kind`",
                involves=tuple(("datasets", leaf, "kind") for leaf in kinds),
            )
        private = [leaf for leaf in leaves if leaf in datasets and not datasets[leaf].public_evaluation]
        if self.public_evaluation and private:
            yield Mistake(
                ("datasets", name, "public_evaluation"),
                f"true, but {listed(private)} in it does not allow publishing; set it there too, or false here",
                involves=tuple(("datasets", leaf, "public_evaluation") for leaf in private),
            )


def _leaves(name: str, datasets: Mapping[str, Source], within: tuple[str, ...]) -> list[str] | None:
    """Return the parts of a dataset that are not combined themselves, as often as they occur; None for a circle."""
    if name in within:
        return None
    if name not in datasets or not datasets[name].parts():
        return [name]
    leaves: list[str] = []
    for part in datasets[name].parts():
        inner = _leaves(part, datasets, (*within, name))
        if inner is None:
            return None
        leaves += inner
    return leaves
