"""The receipt as a member of a package: if it breaks the ledger's rules, the package is refused."""

import pytest

from sealed_experts.files.canonical import canonical_json
from sealed_experts.packages.content.receipt import recompute_receipt
from sealed_experts.packages.errors import PackageError
from sealed_experts.privacy.ledger.published_receipt import receipt_bytes
from tests.attacks import building
from tests.unit.privacy.test_recomputation import HONEST


def test_a_package_whose_receipt_leaves_a_stage_out_is_refused_and_not_sealed():
    inputs = {
        "settings": building.run(stages=("sft", "reinforce")),
        "selection": {"stage": "reinforce", "reason": "the last", "candidates": ["sft", "reinforce"]},
    }
    with pytest.raises(PackageError, match="stage 'reinforce' has no event"):
        building.package(**inputs, privacy=building.privacy())
    honest = building.package(**inputs)
    false = receipt_bytes(building.privacy("reinforce", epsilon=building.parts(honest)[0]["privacy"]["epsilon"]))
    building.refuse(building.with_member("privacy_receipt.json", false, of=honest), "stage 'sft' has no event")


def test_a_claim_below_its_events_is_refused_as_content():
    false = canonical_json({**HONEST, "epsilon": HONEST["epsilon"] / 2}).encode()
    with pytest.raises(PackageError, match=r"^privacy_receipt\.json: epsilon is .* cost at least") as caught:
        recompute_receipt(false)
    assert caught.value.exit_code == 11
