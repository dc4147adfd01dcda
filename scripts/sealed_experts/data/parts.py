"""What a dataset holds. For a combined dataset, look at its parts, and at their parts."""

from collections.abc import Mapping

from sealed_experts.data.sources import Source


def leaves(name: str, datasets: Mapping[str, Source]) -> list[str]:
    """Return the parts of a dataset that are not combined themselves, each once; a plain dataset is its own part."""
    found: dict[str, None] = {}  # keeps the order
    waiting, seen = [name], set()
    while waiting:
        current = waiting.pop()
        dataset = datasets.get(current)
        if dataset is None or current in seen:
            continue  # an unknown part, or a circle: other checks report it
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
    """Return whether the dataset has a `test.jsonl`."""
    return any(datasets[leaf].has_test_set() for leaf in leaves(name, datasets))


def has_training_set(name: str, datasets: Mapping[str, Source]) -> bool:
    """Return whether the dataset has training records. A circle of parts counts as yes: other checks report it."""
    found = leaves(name, datasets)
    return not found or any(datasets[leaf].held_out_share() < 1 for leaf in found)
