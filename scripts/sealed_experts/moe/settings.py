"""Settings of the assembled mixture."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sealed_experts.settings.fields import Group, setting
from sealed_experts.settings.messages import Mistake

# Largest sum of coefficient modulus bits at 128-bit classical security for a ternary secret: HomomorphicEncryption.org,
# "Homomorphic Encryption Security Standard" (2018), table 1.
MODULUS_BITS = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}


class HeSettings(Group):
    """Homomorphic encryption parameters that are passed on to the serving engine."""

    scheme: Literal["ckks"] = setting("Encryption scheme.", default="ckks")
    poly_modulus_degree: Literal[1024, 2048, 4096, 8192, 16384, 32768] = setting("Ring size.", default=16384)
    coeff_modulus_bits: tuple[Annotated[int, Field(ge=2, le=60)], ...] = setting(
        "Bits of the modulus chain's primes.", default=(60, 40, 40, 60), min_length=1
    )
    scale_bits: int = setting("Bits of the encoding scale.", default=40, ge=1, le=60)
    use_column_packing: bool = setting("Pack matrices by column.", default=True)

    def mistakes(self) -> Iterator[Mistake]:
        """Yield bits that are too many or too few, or that leave no room for the integer part."""
        here = ("moe", "he_config")
        bits, largest = sum(self.coeff_modulus_bits), MODULUS_BITS[self.poly_modulus_degree]
        ring = (*here, "poly_modulus_degree")
        if bits > largest:
            yield Mistake(
                (*here, "coeff_modulus_bits"),
                f"{list(self.coeff_modulus_bits)} sums to {bits} bits; a ring of {self.poly_modulus_degree} allows at"
                f" most {largest} at 128-bit security: use fewer bits or a larger ring",
                involves=(ring,),
            )
        needed = (2 * self.poly_modulus_degree).bit_length()  # a prime that is 1 modulo 2N has more bits than log2(2N)
        if min(self.coeff_modulus_bits) < needed:
            yield Mistake(
                (*here, "coeff_modulus_bits"),
                f"a prime of {min(self.coeff_modulus_bits)} bits does not exist for a ring of"
                f" {self.poly_modulus_degree}; each needs at least {needed} bits",
                involves=(ring,),
            )
        if self.scale_bits >= self.coeff_modulus_bits[0]:
            yield Mistake(
                (*here, "scale_bits"),
                f"{self.scale_bits} leaves no bits for the integer part; it must be below the first of"
                f" coeff_modulus_bits, which is {self.coeff_modulus_bits[0]}",
                involves=((*here, "coeff_modulus_bits"),),
            )


class GatelinkSettings(Group):
    """Limits that the serving engine enforces per query and in total."""

    dp_epsilon: float = setting("Budget of one query.", default=1.0, gt=0)
    max_epsilon: float = setting("Budget of all queries.", default=10.0, gt=0)
    max_lora_rank: int = setting("Largest adapter rank the engine accepts.", default=32, ge=1)

    def mistakes(self) -> Iterator[Mistake]:
        """Yield a budget of one query that is above the budget of all queries."""
        if self.dp_epsilon > self.max_epsilon:
            yield Mistake(
                ("moe", "gatelink_config", "dp_epsilon"),
                f"one query's budget of {self.dp_epsilon} is above max_epsilon, the budget of all, which is"
                f" {self.max_epsilon}",
                involves=(("moe", "gatelink_config", "max_epsilon"),),
            )


class MoeSettings(Group):
    """The assembled mixture."""

    he_config: HeSettings = setting("Homomorphic encryption.", default=HeSettings())
    gatelink_config: GatelinkSettings = setting("Engine limits.", default=GatelinkSettings())
    max_epsilon: float | None = setting(
        "Refuse to assemble a mixture whose joint ε is above this, or states none.", default=None, gt=0
    )

    revision: ClassVar[int] = 2  # raised when the meaning of moe_config.json changes
