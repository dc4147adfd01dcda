"""One rule says what an adapter file must have been made with, whoever uses the file."""

from pathlib import Path

import pytest

from sealed_experts.errors import UserError
from sealed_experts.training.refusals import check_made_with

MADE = {"adapter_name": "loans", "stage": "sft", "base_digest": "b" * 64, "adapter": {"rank": 8}, "template": "alpaca"}
PATH = Path("experts/{loans}/adapter_final.pt")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("adapter_name", "cards", "the expert loans, but cards is"),
        ("stage", "reinforce", "the stage sft, but reinforce is"),
        ("base_digest", "c" * 64, f"the base of digest {'b' * 64}, but {'c' * 64} is"),
        ("adapter", {"rank": 4}, "the adapter settings {'rank': 8}, but {'rank': 4} is"),
        ("template", "chatml", "the template alpaca, but chatml is"),
    ],
)
def test_a_file_made_with_something_else_is_refused(name, value, said):
    with pytest.raises(UserError) as caught:
        check_made_with(PATH, {"subject": MADE}, needed="{} is needed", remedy="do it", **{**MADE, name: value})
    assert str(caught.value) == f"{PATH} was made with {said} needed: do it"


def test_only_what_is_named_is_compared():
    check_made_with(PATH, {"subject": MADE}, needed="{}", remedy="", template="alpaca")
    with pytest.raises(UserError, match="the template None, but alpaca"):
        check_made_with(PATH, {}, needed="{} is needed", remedy="", template="alpaca")
