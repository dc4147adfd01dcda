"""Read the canonical texts that rules pass to their scripts."""

from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.settings.checking import parse_object


def read_text(text: str, keys: set[str]) -> dict[str, Any]:
    """Return the mapping in a rule's text. It must have exactly these keys.

    Raises:
        UserError: the text is not JSON, or has other keys.
    """
    data = parse_object(text)
    if data.keys() != keys:
        raise UserError(f"these settings should hold {', '.join(sorted(keys))}; they hold {', '.join(sorted(data))}")
    return data
