"""The canonical texts that rules hand to their scripts, read back."""

from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.settings.checking import parse_object


def read_text(text: str, keys: set[str]) -> dict[str, Any]:
    """Return the mapping of a rule's text, which must have exactly these keys.

    Raises:
        UserError: it is not such a text.
    """
    data = parse_object(text)
    if data.keys() != keys:
        raise UserError(f"these settings should hold {', '.join(sorted(keys))}; they hold {', '.join(sorted(data))}")
    return data
