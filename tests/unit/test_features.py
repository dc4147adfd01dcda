"""Features by name: what is no feature is not found, and what is missing is reported without a traceback."""

import pytest

from sealed_experts.data.records import RECORDS
from sealed_experts.features import missing_extras
from sealed_experts.metrics.loss import Loss
from sealed_experts.models.adapters import KINDS
from sealed_experts.rewards import REWARDS
from sealed_experts.training.objectives import STAGES


@pytest.mark.parametrize("name", ["__init__", "making", "language", "no such", "", "sft.x"])
@pytest.mark.parametrize("features", [KINDS, RECORDS, REWARDS, STAGES])
def test_a_name_of_a_folder_or_of_python_is_no_feature(features, name):
    assert name not in features
    with pytest.raises(KeyError):
        features[name]


def test_an_extra_inside_a_missing_package_is_missing(monkeypatch):
    monkeypatch.setattr(Loss, "extra", {"no_such_package.inside": "chroma", "json.decoder": "never"})
    assert missing_extras([Loss]) == {"chroma": ["loss"]}
