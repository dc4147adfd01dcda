"""What a dataset holds, through all the datasets that it may be combined of."""

from collections.abc import Mapping

from sealed_experts.data.sources import Source


def leaves(name: str, datasets: Mapping[str, Source]) -> list[str]:
    """Return the datasets that a dataset is made of and that are not combined themselves, each once."""
    found: dict[str, None] = {}  # keeps the order
    waiting, seen = [name], set()
    while waiting:
        current = waiting.pop()
        dataset = datasets.get(current)
        if dataset is None or current in seen:
            continue  # an unknown part, or a circle: said elsewhere
        seen.add(current)
        if dataset.parts():
            waiting += reversed(dataset.parts())
        else:
            found[current] = None
    return list(found)


def record_kinds(name: str, datasets: Mapping[str, Source]) -> dict[str, str]:
    """Return {leaf: the kind of its records}."""
    return {leaf: datasets[leaf].record_kind() for leaf in leaves(name, datasets)}


def has_test_set(name: str, datasets: Mapping[str, Source]) -> bool:
    """Return whether there is a `test.jsonl` of the dataset."""
    return any(datasets[leaf].has_test_set() for leaf in leaves(name, datasets))


def has_training_set(name: str, datasets: Mapping[str, Source]) -> bool:
    """Return whether anything of the dataset is for training; a circle, of which nothing is known, counts so."""
    found = leaves(name, datasets)
    return not found or any(datasets[leaf].held_out_share() < 1 for leaf in found)
