"""What an adapter file must have been made with, and what a gradient engine cannot do."""

import types
from pathlib import Path

import pytest

from sealed_experts.errors import UserError
from sealed_experts.models.adapters.lora import Lora
from sealed_experts.privacy.engines import NAMES
from sealed_experts.training.objectives.sft import Sft
from sealed_experts.training.refusals import check_made_with, check_recomputation, out_of_memory

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


@pytest.mark.parametrize("engine", [None, *NAMES])
def test_recomputation_is_refused_and_not_advised_where_the_engine_cannot(engine):
    def job(wish):
        return types.SimpleNamespace(stage="sft", adapter=Lora(), settings=Sft(gradient_checkpointing=wish))

    for wish in ("auto", "off"):
        check_recomputation(job(wish), engine=engine)
    if engine == "vmap":
        with pytest.raises(
            UserError, match=r"^sft\.gradient_checkpointing: a `lora` adapter's .* lower sft\.token_budget"
        ):
            check_recomputation(job("on"), engine=engine)
    else:
        check_recomputation(job("on"), engine=engine)
    advised = "gradient_checkpointing: on" in str(out_of_memory(job("auto"), engine=engine))
    assert advised is (engine != "vmap")
