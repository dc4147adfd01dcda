"""Check the member privacy_receipt.json by the ledger's rules and against the manifest."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sealed_experts.packages.content.manifest import canonical_object
from sealed_experts.packages.errors import PackageError
from sealed_experts.privacy.ledger.receipt_rules import ReceiptError, check_receipt, privacy_summary

if TYPE_CHECKING:
    from sealed_experts.privacy.ledger.second_accountant import Bounds

RECEIPT = "privacy_receipt.json"


def check_receipt_member(manifest: Mapping[str, Any], content: bytes) -> None:
    """Compare privacy_receipt.json with the manifest and with the ledger's rules.

    Raises:
        PackageError: they differ, or the receipt breaks a rule.
    """
    receipt = canonical_object(content, RECEIPT)
    stated = privacy_summary(receipt)
    for field in sorted(stated.keys() | manifest["privacy"].keys()):
        if stated.get(field) != manifest["privacy"].get(field):
            raise PackageError(
                f"{RECEIPT}: its {field} is {ascii(stated.get(field))[:100]}, but the manifest states"
                f" {ascii(manifest['privacy'].get(field))[:100]}"
            )
    try:
        check_receipt(receipt, stages=manifest["training"]["stages"])
    except ReceiptError as error:
        raise PackageError(f"{RECEIPT}: {error}") from error


def recompute_receipt(content: bytes) -> "Bounds | None":
    """Recompute the ε of a verified privacy_receipt.json with a second accountant. This takes seconds.

    Returns:
        The second accountant's bounds on ε; None if the receipt claims none.

    Raises:
        PackageError: the receipt claims less than its events cost.
    """
    from sealed_experts.privacy.ledger.recomputation import recompute_privacy  # scipy takes a second to import

    try:
        return recompute_privacy(canonical_object(content, RECEIPT))
    except ReceiptError as error:
        raise PackageError(f"{RECEIPT}: {error}") from error
