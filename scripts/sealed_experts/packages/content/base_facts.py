"""Facts from a base model's config.json that a program needs to load an adapter on it."""

from collections.abc import Mapping
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.packages.content.manifest_schema import ROPE_SCALING


def quantization_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the manifest's `base.quantization`: method and bits; None if the base is not quantised.

    Raises:
        UserError: config.json names no method.
    """
    found = config.get("quantization_config")
    if not found:
        return None
    method = found.get("quant_method") if isinstance(found, Mapping) else None
    if not isinstance(method, str) or not method:
        raise UserError("the base's config.json has a quantization_config that names no quant_method: correct it")
    bits = found.get("bits") or (4 if found.get("load_in_4bit") else 8 if found.get("load_in_8bit") else None)
    return {"method": method} | ({"bits": bits} if isinstance(bits, int) else {})


def rope_scaling_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the manifest's `base.rope_scaling`; None if positions are not stretched.

    Newer versions of transformers call it `rope_parameters` and may store one mapping for each kind of layer.

    Raises:
        UserError: different kinds of layers are stretched differently, or a field is unknown.
    """
    found = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(found, Mapping):
        return None
    parts = [part for part in found.values() if isinstance(part, Mapping)] or [found]
    stretched: list[dict[str, Any]] = []
    for part in parts:
        kind = part.get("rope_type", part.get("type", "default"))
        own = {key: value for key, value in part.items() if value is not None and key not in ("type", "rope_type")}
        if kind != "default" and {"rope_type": kind, **own} not in stretched:
            stretched.append({"rope_type": kind, **own})
    if len(stretched) > 1:
        raise UserError("the base's config.json stretches positions in several ways, which no manifest can state")
    unknown = sorted(stretched[0].keys() - ROPE_SCALING.keys()) if stretched else []
    if unknown:
        raise UserError(f"the base's config.json has the rope setting {unknown[0]!r}, which no manifest can state")
    return stretched[0] if stretched else None
