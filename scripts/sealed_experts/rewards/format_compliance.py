"""`format_compliance`: whether an answer is JSON, or a numbered list."""

import re
from typing import ClassVar, Literal

from sealed_experts.rewards import Reward
from sealed_experts.rewards.language.json_text import holds_json
from sealed_experts.settings.fields import setting

_ITEM = re.compile(r"\s*([0-9]+)\.\s+\S")
_FEWEST_ITEMS = 2


class FormatCompliance(Reward):
    """`json`: 1 for one JSON object or array, else 0. `numbered_list`: the share of lines that are items.

    JSON is the whole answer or its only fenced block; text around the fence is allowed. It is read strictly: no
    duplicate keys, no NaN. Items are `1. `, `2. `, … in this order, followed by text; other non-empty lines count
    against the answer, and fewer than two items are no list: 0.
    """

    format: Literal["json", "numbered_list"] = setting("What an answer should be.", default="json")

    about: ClassVar[str] = "whether the answer keeps its `format`: json or numbered_list"

    def measure(self, response: str) -> float:
        """Return the value for the answer's form."""
        return float(holds_json(response)) if self.format == "json" else _item_share(response)


def _item_share(response: str) -> float:
    lines = [line for line in response.splitlines() if line.strip()]
    items = 0
    for line in lines:
        found = _ITEM.match(line)
        items += found is not None and found[1] == str(items + 1)
    return items / len(lines) if items >= _FEWEST_ITEMS else 0.0
