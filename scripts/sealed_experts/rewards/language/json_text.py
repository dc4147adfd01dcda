"""Decide whether an answer is strict JSON, alone or in a fenced block."""

from sealed_experts.files.canonical import strict_json

_FENCE = "```"


def holds_json(response: str) -> bool:
    """Say whether an answer is one JSON object or array, or its only fenced block is."""
    return _is_json(response) or _is_json(_only_block(response))


def _is_json(text: str) -> bool:
    try:
        return isinstance(strict_json(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _only_block(response: str) -> str:
    """Return the content of the only fenced block; an empty text if there is no block, a second one, or no end."""
    lines = response.splitlines()
    fences = [number for number, line in enumerate(lines) if line.lstrip().startswith(_FENCE)]
    if len(fences) != 2 or lines[fences[1]].strip() != _FENCE:
        return ""
    return "\n".join(lines[fences[0] + 1 : fences[1]])
