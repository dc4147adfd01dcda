"""The engine: verify a whole mixture, load it from the verified bytes, and let the right expert answer."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import read_json
from sealed_experts.moe.compatibility import active_together, check_package
from sealed_experts.moe.configuration import BaseReference, Member, Mixture, read_mixture
from sealed_experts.moe.router import Decision, Router
from sealed_experts.packages import opening
from sealed_experts.packages.constraints import check_together
from sealed_experts.packages.errors import PackageError
from sealed_experts.packages.keys.policy import DEFAULT, Policy
from sealed_experts.packages.keys.trust import TrustStore
from sealed_experts.packages.recipients.encryption import Identity
from sealed_experts.packages.report import VerifiedPackage

if TYPE_CHECKING:
    from sealed_experts.moe.generation import Experts


@dataclass(frozen=True)
class Answer(Decision):
    """A decision, and the expert's answer."""

    text: str


class Engine:
    """A verified mixture in memory, ready to answer."""

    def __init__(self, *, router: Router, experts: "Experts") -> None:
        """Use `Engine.load` instead."""
        self._router = router
        self._experts = experts

    @classmethod
    def load(
        cls,
        config_path: str | os.PathLike[str],
        *,
        trust: TrustStore,
        policy: Policy = DEFAULT,
        identity: Identity | None = None,
        device: str = "auto",
    ) -> "Engine":
        """Verify everything that a moe_config.json names, then load it.

        First, check every package (signature by a trusted key, digest in the configuration, expert, base) and the
        base's digest. Only then load the base, once, and each adapter from the verified bytes.

        Args:
            policy: what is required of the packages besides a trusted publisher.
            identity: the private key for encrypted packages, such as `own_identity()`.
            device: `auto`, `cpu` or `cuda`.

        Raises:
            PackageError: a package fails verification, or is not the one in the configuration.
            UserError: the configuration does not follow its format, a file is missing, or the base is a different one.
        """
        mixture = read_mixture(config_path)
        router = mixture.router()
        packages = verified_packages(mixture, trust=trust, policy=policy, identity=identity)
        _check_base_manifest(mixture.base)
        # These imports take seconds, so they come after the checks.
        from sealed_experts.moe.generation import Experts, load_mixture_base

        return cls(
            router=router, experts=Experts(base=load_mixture_base(mixture.base, device=device), packages=packages)
        )

    @property
    def experts(self) -> "Experts":
        """The loaded experts, to ask one of them without the router."""
        return self._experts

    def answer(self, question: str, *, max_new_tokens: int = 128, temperature: float = 0.0, seed: int = 0) -> Answer:
        """Route `question` and return the expert's answer.

        Args:
            max_new_tokens: most tokens in the answer; it also ends at the end-of-sequence token.
            temperature: 0 always takes the most likely token; above 0, tokens are sampled.
            seed: seed of the sampling; the same seed gives the same answer.

        Raises:
            UserError: no expert answers this question, it is longer than the base's context, or an option is out of
                range.
        """
        decision = self._router.decide(question)
        text = self._experts.generate(
            decision.expert, question, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
        )
        return Answer(expert=decision.expert, matched=decision.matched, text=text)


def verified_packages(
    mixture: Mixture, *, trust: TrustStore, policy: Policy = DEFAULT, identity: Identity | None = None
) -> dict[str, VerifiedPackage]:
    """Open every package of a mixture. Return them by expert, in loading order. torch is not needed.

    Raises:
        PackageError: a package fails verification, or is not the one in the configuration.
        IncompatibleError: the packages' constraints are not met.
        UserError: a package does not exist.
    """
    packages = {
        member.name: verified_package(member, mixture, trust=trust, policy=policy, identity=identity)
        for member in mixture.members
    }
    check_together(
        [package.manifest for package in packages.values()],
        active=active_together(member.always_active for member in mixture.members),
    )
    return dict(sorted(packages.items(), key=lambda item: item[1].manifest["constraints"]["load_order"]))


def verified_package(
    member: Member,
    mixture: Mixture,
    *,
    trust: TrustStore,
    policy: Policy = DEFAULT,
    identity: Identity | None = None,
) -> VerifiedPackage:
    """Open the package of one member of a mixture. torch is not needed.

    Raises:
        PackageError: it fails verification, or is not the one in the configuration.
        UserError: it does not exist.
    """
    if not os.path.isfile(member.package):
        raise UserError(f"{member.package}, the package of expert {member.name}, does not exist: nothing was loaded")
    package = opening.open_any(member.package, trust=trust, policy=policy, identity=identity)
    for what, found, recorded in (
        ("digest", package.digest, member.package_digest),
        ("publisher", package.publisher, member.publisher),
    ):
        if found != recorded:
            raise PackageError(
                f"{member.package}: its {what} is {found}, but the configuration records {recorded}: it is another "
                "package than the one that was assembled; if this is intended, assemble the mixture again"
            )
    max_rank = mixture.gatelink_config["max_lora_rank"]
    check_package(package, path=member.package, name=member.name, base=mixture.base, max_rank=max_rank)
    return package


def _check_base_manifest(base: BaseReference) -> None:
    """Check the digest in the base's base.json. Its files are checked when they are loaded."""
    path: Path = base.folder / "base.json"
    manifest: Any = read_json(path)
    stated = manifest.get("digest") if isinstance(manifest, dict) else None
    if stated != base.digest:
        raise UserError(
            f"{path} states the digest {stated}, but the mixture was assembled on {base.name!r} of digest {base.digest}"
            ": nothing was loaded; put that base back, or assemble the mixture again"
        )
