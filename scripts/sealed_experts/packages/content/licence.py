"""The member LICENSE: the owner's text, or the name of a public licence."""

from sealed_experts.errors import UserError
from sealed_experts.packages.settings import NO_LICENCE
from sealed_experts.packages.settings_checks import PRIVATE_KEY

LICENCE_MEMBER = "LICENSE"


def licence_bytes(licence: str, *, author: str, text: bytes | None) -> bytes:
    """Return LICENSE.

    Args:
        licence: an SPDX expression, or `NOASSERTION`.
        author: the expert's author; may be empty.
        text: the licence's text, if the owner gave one.

    Raises:
        UserError: the text holds a private key.
    """
    if text is not None:
        if PRIVATE_KEY.search(text.decode("utf-8", "replace")):
            raise UserError(
                "package.licence_file holds a private key, which every reader would get: give the licence's text"
            )
        return text
    holder = author or "the publisher that signed this package"
    if licence == NO_LICENCE:
        return (
            f"SPDX-License-Identifier: {licence}\n\nNo licence is stated. Ask {holder} before you use, change or pass"
            " on this expert.\n"
        ).encode()
    return (
        f"SPDX-License-Identifier: {licence}\n\nLicensed by {holder} under {licence}. The text of each licence named"
        " here is at https://spdx.org/licenses/.\n"
    ).encode()
