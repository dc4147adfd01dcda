"""The composition test: with all experts on one base, each must answer as if it were alone.

The verifying engine loads every expert from its package. Each expert answers a few public questions that the router
sends to it. The logits of question and answer are compared twice, bit for bit: with those after the other experts have
answered, and with those of the same package alone on a freshly loaded base. Only digests of the logits are kept, and
the second comparison loads one package at a time, so memory does not grow with the questions.
"""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sealed_experts.errors import UserError
from sealed_experts.files.digests import sha256_bytes
from sealed_experts.moe.configuration import Member, Mixture, read_mixture
from sealed_experts.moe.engine import Engine, verified_package
from sealed_experts.moe.generation import Experts, load_mixture_base
from sealed_experts.moe.router import Router
from sealed_experts.packages.keys.trust import TrustStore
from sealed_experts.packages.recipients.encryption import Identity
from sealed_experts.packages.recipients.own_identity import own_identity

QUESTIONS_EACH = 3  # made from an expert's keywords
ANSWER_TOKENS = 24
# For the always-active expert: ask the first of these that contains no expert's keyword.
GENERAL_QUESTIONS = ("What should I do first?", "How does this work?", "Why is that so?", "Who are you?")


class CompositionError(UserError):
    """The experts of a mixture do not answer as they should."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question to an expert, and the router's decision; `routed_to` is None if no expert would answer."""

    expert: str
    text: str
    routed_to: str | None
    matched: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Asked(Question):
    """A question with its expert's answer, and the SHA-256 of the logits of both."""

    answer: str
    digest: str


def check_composition(config: str | os.PathLike[str], *, trust: TrustStore, device: str = "auto") -> dict[str, Any]:
    """Check a mixture and return the content of composition.json.

    Args:
        config: moe_config.json.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        CompositionError: logits are not finite, change after other experts have answered, or differ from those of the
            expert alone; the message names the expert, the question and the difference.
        PackageError: a package fails verification.
        UserError: the mixture cannot be loaded.
    """
    mixture, identity = read_mixture(config), own_identity()
    router = mixture.router()
    questions = [questions_for(member, router=router) for member in mixture.members]
    engine = Engine.load(config, trust=trust, identity=identity, device=device)
    asked = [[_ask(question, engine) for question in of_one] for of_one in questions]
    # Ask again in another order: asking an expert twice in a row would not switch experts.
    for answered in itertools.chain.from_iterable([*reversed(asked[:-1]), asked[-1]]):
        _compare(answered, engine.experts, "changed after other experts had answered: switching experts leaves traces")
    del engine  # only one base in memory at a time
    _compare_alone(mixture, asked, trust=trust, identity=identity, device=device)
    return {
        "ok": True,
        "base_digest": mixture.base.digest,
        "experts": {member.name: _entry(member, of_one) for member, of_one in zip(mixture.members, asked, strict=True)},
    }


def questions_for(member: Member, *, router: Router) -> tuple[Question, ...]:
    """Return public questions that reach an expert.

    They are made from its keywords. An always-active expert also gets one without keywords. If no question reaches the
    expert, the result is one question that the router sends elsewhere: its `routed_to` is not this expert.
    """
    made = (_routed(f"What is {keyword}?", member, router) for keyword in member.keywords)
    general = (_routed(text, member, router) for text in GENERAL_QUESTIONS if member.always_active)
    found = (
        *itertools.islice(_reaching(made), QUESTIONS_EACH),
        *itertools.islice((question for question in _reaching(general) if not question.matched), 1),
    )
    texts = [f"What is {keyword}?" for keyword in member.keywords[:1]] or GENERAL_QUESTIONS[:1]
    return found or (_routed(texts[0], member, router),)


def _reaching(questions: Iterable[Question]) -> Iterator[Question]:
    return (question for question in questions if question.routed_to == question.expert)


def _routed(text: str, member: Member, router: Router) -> Question:
    try:
        decision = router.decide(text)
    except UserError:  # no keyword of any expert, and no fallback
        return Question(expert=member.name, text=text, routed_to=None, matched=())
    return Question(expert=member.name, text=text, routed_to=decision.expert, matched=decision.matched)


def _ask(question: Question, engine: Engine) -> Asked:
    if question.routed_to == question.expert:
        answer = engine.answer(question.text, max_new_tokens=ANSWER_TOKENS).text
    else:
        answer = engine.experts.generate(question.expert, question.text, max_new_tokens=ANSWER_TOKENS)
    return Asked(**vars(question), answer=answer, digest=_digest(question, answer, engine.experts))


def _compare(asked: Asked, experts: Experts, difference: str) -> None:
    if _digest(asked, asked.answer, experts) != asked.digest:
        raise CompositionError(f"{_place(asked)} {difference}; do not use this mixture")


def _compare_alone(
    mixture: Mixture,
    asked: Sequence[Sequence[Asked]],
    *,
    trust: TrustStore,
    identity: Identity | None,
    device: str,
) -> None:
    base = load_mixture_base(mixture.base, device=device)
    for member, of_one in zip(mixture.members, asked, strict=True):
        package = verified_package(member, mixture, trust=trust, identity=identity)
        alone = Experts(base=base, packages={member.name: package})
        for answered in of_one:
            _compare(
                answered, alone, "are not those of its package alone on the same base: other experts change its answers"
            )
        alone.unload()


def _digest(question: Question, answer: str, experts: Experts) -> str:
    logits = experts.logits(question.expert, question.text, answer=answer)
    if not bool(torch.isfinite(logits).all()):
        raise CompositionError(
            f"{_place(question)} are not all finite: its weights are broken; train it again with a lower learning rate"
        )
    return sha256_bytes(logits.contiguous().cpu().view(torch.uint8).numpy().tobytes())


def _place(question: Question) -> str:
    return f"expert {question.expert}: its logits for the question {question.text!r}"


def _entry(member: Member, asked: Sequence[Asked]) -> dict[str, Any]:
    return {
        "package_digest": member.package_digest,
        "prompts": [
            {"prompt": one.text, "routed_to": one.routed_to, "matched": list(one.matched), "answer": one.answer}
            for one in asked
        ],
        "reached": all(one.routed_to == member.name for one in asked),
        # Always true: otherwise an error was raised.
        "finite": True,
        "stable_under_switching": True,
        "alone_equals_mixture": True,
    }
