"""What an adapter file says about the privacy of its training, all stages up to its own together."""

from typing import Any

from sealed_experts.privacy.ledger.accounting import account, describe_accountant
from sealed_experts.privacy.ledger.events import events_from_json
from sealed_experts.privacy.plan import PrivacyPlan

NO_PRIVACY = "trained without differential privacy"
SEED_REVEALS = "reproducible mode: draws and noise follow from the seed, so there is no privacy against who knows it"


def privacy_record(
    *, plan: PrivacyPlan | None, steps: int, prior: dict[str, Any] | None, key_id: str | None
) -> dict[str, Any]:
    """Return the `privacy` mapping of an adapter file.

    `epsilon` is the joint ε of all stages so far; it is null, with a `reason`, where none can be claimed. A claim
    needs every stage to have one.

    Args:
        steps: how many releases this stage made, as the journal counts them.
        prior: the same mapping of the stage before, which this stage started from.
        key_id: name of the key of draws and noise, which does not reveal it.
    """
    if plan is None:
        return {"enabled": False, "epsilon": None, "reason": NO_PRIVACY, "events": [], "stage_epsilon": {}}
    events = [*events_from_json((prior or {}).get("events", [])), plan.event(steps, key_id=key_id)]
    joint = account(events, delta=plan.delta)
    reason = SEED_REVEALS if plan.mode != "release" else (prior or {}).get("reason")
    claimed = None if reason else joint.epsilon
    return {
        "enabled": True,
        "mode": plan.mode,
        "unit": plan.unit,
        "units": plan.units,
        "neighbouring": plan.neighbouring,
        "sampling": plan.sampling,
        "sample_rate": plan.sample_rate,
        "expected_batch_size": plan.expected_batch_size,
        "noise_multiplier": plan.noise_multiplier,
        "max_grad_norm": plan.max_grad_norm,
        "steps": steps,
        "accountant": describe_accountant(joint.accountant),
        "delta": plan.delta,
        "target_epsilon": plan.target_epsilon,
        "epsilon": claimed,
        "reason": reason,
        "events": [event.to_json() for event in events],
        "stage_epsilon": {**(prior or {}).get("stage_epsilon", {}), plan.stage: claimed},
        "key_id": key_id,
    }
