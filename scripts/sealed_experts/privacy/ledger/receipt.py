"""The privacy receipt of a stage: what is promised, to whom and why, and what is not promised.

It is a plain mapping, ready for JSON. It stays with the adapter: in the metrics of every stage and in the package.
Anyone can recompute its ε from its events.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.privacy.ledger.accounting import account, describe_accountant, joint_stage_epsilons
from sealed_experts.privacy.ledger.events import GaussianEvent, distinct_events, events_from_json
from sealed_experts.privacy.ledger.private_stage import PrivacyPlan

MECHANISM = "gaussian_on_clipped_sums"

REPRODUCIBLE_REASON = (
    "mode is reproducible: draws and noise follow from the seed, so there is no privacy against someone who knows it"
)
DISABLED_REASON = "privacy is off: nothing was clipped or noised"

_PROTECTS = [
    "each unit of train.jsonl: whether it was in the training data at all, and everything it says, against anyone who "
    "holds the package",
]
_UNITS_ARE_PUBLIC = "units: the number of units is treated as public"
_UNPROTECTED = ["the training data: the adapter may repeat any of it"]
_REPRODUCIBLE = ["the training data, against someone who knows the seed"]
_DOES_NOT_PROTECT = [
    "decisions that were made by looking at the data before train.jsonl was written, or at private results (settings, "
    "keywords, which run to publish)",
    "files outside the package: metrics, logs, checkpoints and the journal are as private as the data",
    "rounding: clipping, sums and noise are float64, but gradients are computed together in float32 or bfloat16, where "
    "adding or removing one record changes the last bits of its neighbours' gradients (relative 1e-6 and 1e-2)",
    "how long training took",
]


def stage_receipt(
    plan: PrivacyPlan,
    *,
    steps: int,
    key_id: str,
    prior: Mapping[str, Any] | None = None,
    spent: Sequence[GaussianEvent] = (),
    public: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the receipt of an adapter at the end of a private stage.

    Args:
        steps: number of noisy steps in the stage's journal.
        key_id: public id of the noise key.
        prior: the receipt of the adapter that the stage started from, or of all adapters that it learned from
            (`joined_receipts`).
        spent: steps that the stage took earlier with other keys.
        public: what else is treated as public, each with its purpose.

    Raises:
        UserError: `prior` counts another kind of unit, or is not a receipt.
    """
    check_same_units(prior, stage=plan.stage, unit=plan.unit)
    inherited = events_from_json(prior["events"]) if prior is not None else ()
    if spent and not steps:  # all steps were taken with another key
        steps, key_id = spent[-1].steps, spent[-1].key_id or key_id
    events = distinct_events([*inherited, *spent, plan.event(steps, key_id=key_id)])
    result = account(events, delta=plan.delta)
    reason = _reason(plan.mode, prior)
    stages = _stages(prior, [event.stage for event in events])
    return {
        "enabled": True,
        "mode": plan.mode,
        "unit": plan.unit,
        "units": plan.units,
        "public": list(dict.fromkeys([_UNITS_ARE_PUBLIC, *((prior or {}).get("public") or ()), *public])),
        "neighbouring": plan.neighbouring,
        "sampling": plan.sampling,
        "mechanism": MECHANISM,
        "expected_batch_size": plan.expected_batch_size,
        "sample_rate": plan.sample_rate,
        "noise_multiplier": plan.noise_multiplier,
        "queries": dict(plan.queries),
        "effective_noise_multiplier": plan.effective_noise_multiplier,
        "max_grad_norm": plan.max_grad_norm,
        "steps": steps,
        "key_id": key_id,
        "events": [event.to_json() for event in events],
        "accountant": describe_accountant(result.accountant),
        "delta": plan.delta,
        "target_epsilon": plan.target_epsilon,
        "epsilon": None if reason else result.epsilon,
        "stage_epsilon": dict.fromkeys(stages) if reason else joint_stage_epsilons(events, delta=plan.delta),
        "reason": reason,
        "protects": [] if reason else _PROTECTS,
        "does_not_protect": _open_to_all(reason) if reason else _DOES_NOT_PROTECT,
    }


def check_same_units(prior: Mapping[str, Any] | None, *, stage: str, unit: str) -> None:
    """Check that a stage's ε can be composed with that of the adapter that it learned from.

    Raises:
        UserError: they count units of different kinds.
    """
    if prior is not None and prior.get("unit") not in (None, unit):
        raise UserError(
            f"stage {stage} counts units of {unit!r}, the adapter that it learns from units of {prior['unit']!r}: "
            "their ε cannot be composed; train both on data with the same `unit`"
        )


def unprotected_receipt(*, stage: str, unit: str, prior: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the receipt of an adapter at the end of a stage without privacy. It claims no ε."""
    inherited = [event.to_json() for event in events_from_json(prior["events"])] if prior is not None else []
    return {
        "enabled": False,
        "mode": None,
        "unit": unit,
        "neighbouring": None,
        "sampling": None,
        "mechanism": None,
        "sample_rate": None,
        "noise_multiplier": None,
        "max_grad_norm": None,
        "steps": 0,
        "key_id": None,
        "events": inherited,
        "accountant": None,
        "delta": None,
        "target_epsilon": None,
        "epsilon": None,
        "stage_epsilon": dict.fromkeys(_stages(prior, [*(event["stage"] for event in inherited), stage])),
        "reason": f"stage {stage}: {DISABLED_REASON}",
        "protects": [],
        "does_not_protect": _UNPROTECTED,
    }


def joined_receipts(receipts: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the receipts of several adapters as one `prior`, for a stage that learns from all of them.

    It claims an ε only if all of them do. Several receipts may list events of one noise key: these count once. For no
    receipts the result is None.

    Raises:
        UserError: all claim an ε, but for units of different kinds; or one is not a receipt.
    """
    if not receipts:
        return None
    kinds = {receipt.get("unit") for receipt in receipts}
    if len(kinds) > 1 and all(receipt.get("epsilon") is not None for receipt in receipts):
        raise UserError(
            f"a stage is to learn from adapters that count units of {' and of '.join(sorted(map(repr, kinds)))}: "
            "their ε cannot be composed; train all on data with the same `unit`"
        )
    events = distinct_events([event for receipt in receipts for event in events_from_json(receipt["events"])])
    # A reason that exposes the data to everyone is stronger than one that exposes them to those who know the seed.
    silent = sorted(
        (receipt for receipt in receipts if receipt.get("epsilon") is None),
        key=lambda receipt: receipt.get("reason") == REPRODUCIBLE_REASON,
    )
    stages = dict.fromkeys(stage for receipt in receipts for stage in _stages(receipt, []))
    return {
        **(silent[0] if silent else receipts[0]),
        "events": [event.to_json() for event in events],
        "stage_epsilon": dict.fromkeys(stages),
        "public": list(dict.fromkeys(text for receipt in receipts for text in receipt.get("public") or ())),
    }


def _reason(mode: str, prior: Mapping[str, Any] | None) -> str | None:
    if prior is not None and prior.get("epsilon") is None:
        inherited = prior.get("reason")
        if not isinstance(inherited, str) or not inherited:
            raise UserError("the receipt of the stage before this one states neither an ε nor a reason")
        return inherited
    return REPRODUCIBLE_REASON if mode == "reproducible" else None


def _stages(prior: Mapping[str, Any] | None, stages: list[str]) -> list[str]:
    """Return the stages so far. A stage without privacy has no event, only its name in `prior`."""
    return list(dict.fromkeys([*((prior or {}).get("stage_epsilon") or {}), *stages]))


def _open_to_all(reason: str) -> list[str]:
    return _REPRODUCIBLE if reason == REPRODUCIBLE_REASON else _UNPROTECTED
