"""Which expert answers: keywords, plurals, ties, the fallback."""

import string
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealed_experts.errors import UserError
from sealed_experts.moe.router import Decision, Route, Router, normalised

WORDS = st.text(alphabet=string.ascii_lowercase, min_size=1, max_size=8)


def found(keyword, question, *, match="word"):
    """Say whether one expert with this one keyword gets the question."""
    router = Router([Route(expert="a", keywords=(keyword,), match=match), Route(expert="b", always_active=True)])
    return router.decide(question).expert == "a"


@pytest.mark.parametrize(
    ("keyword", "question"),
    [
        ("loan", "How does a LOAN work?"),
        ("Loan", "loan"),
        ("loan", "Compare loans."),
        ("stock", "Which stocks?"),
        ("portfolio", "two portfolios"),
        ("equity", "private equities"),
        ("tax", "What taxes do I pay?"),
        ("branch", "Which branches are open?"),
        ("analysis", "two analyses"),
        ("CD", "Are CDs safe?"),
        ("bank", "the bank's rates"),
        ("bank", "the bank’s rates"),
        ("bank's rate", "the bank’s rate"),
        ("risk", "risk-free"),
        ("loan", "total_loan_amount, (loan)"),
        ("interest rate", "the interest\n\t rate"),
        ("interest\u00a0rate", "the interest rates"),
        ("401(k)", "Should I fill my 401(K)?"),
        ("401(k)", "two 401(k)s"),
        ("401k", "our 401ks"),
        ("S&P 500", "What is the s&p  500's return?"),
        ("C++", "Is C++ fast?"),
        (".net", "a .NET program"),
        ("a.c", "what is a.c here"),
        ("straße", "Lange STRASSE"),
        ("café", "a cafe\u0301 loan"),
        ("loan", "ｌｏａｎ"),
        ("finance", "ﬁnance"),
        ("loan", "lo\u00adan"),
        ("café", "a cafe\u200b\u0301"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("हिन्दी", "यह हिन्दी है"),
    ],
)
def test_found(keyword, question):
    assert found(keyword, question)


@pytest.mark.parametrize(
    ("keyword", "question"),
    [
        ("risk", "What is an asterisk?"),
        ("risk", "The riskiest"),
        ("loan", "Sloane loaned it"),
        ("ETF", "etfx"),
        ("ACH", "each"),
        ("rate", "The 2rate"),
        ("interest rate", "interest in the rate"),
        ("interest rate", "interestrate"),
        ("C++", "C is fast"),
        ("401(k)", "401k"),
        ("a.c", "abc"),
        ("हिन", "हिन्दी"),  # the next character is a vowel sign: the word continues
    ],
)
def test_not_found(keyword, question):
    assert not found(keyword, question)


@pytest.mark.parametrize(
    ("keyword", "question"),
    [
        ("loans", "a loan"),
        ("interest rates", "the interest rate"),
        ("mutual funds", "a mutual fund"),
        ("taxes", "a tax"),
        ("equities", "equity"),
        ("branches", "a branch"),
        ("analyses", "an analysis"),
    ],
)
def test_plural_keyword_finds_the_singular(keyword, question):
    assert found(keyword, question)


@pytest.mark.parametrize(
    ("keyword", "question"),
    [
        ("news", "a new account"),
        ("futures", "my future"),
        ("goods", "a good idea"),
        ("economics", "an economic question"),
        ("IRS", "ir"),
        ("gas", "ga"),
        ("class", "clas"),
        ("virus", "viru"),
    ],
)
def test_word_that_only_looks_plural_is_matched_as_written(keyword, question):
    assert not found(keyword, question)
    assert found(keyword, f"about {keyword}")


def test_substring_is_an_option():
    assert found("risk", "asterisk", match="substring")
    assert found("貸款", "我想申請貸款。", match="substring")
    assert not found("loans", "a loan", match="substring")


def test_most_distinct_keywords_win():
    router = Router(
        [
            Route(expert="banking", keywords=("loan", "bank")),
            Route(expert="investment", keywords=("stock", "bond", "risk")),
        ]
    )
    assert router.decide("loan loan loan, stocks and bonds") == Decision("investment", ("stock", "bond"))


def test_first_listed_wins_a_tie():
    a, b = Route(expert="a", keywords=("loan",)), Route(expert="b", keywords=("bond",))
    assert Router([a, b]).decide("bond or loan").expert == "a"
    assert Router([b, a]).decide("bond or loan").expert == "b"


def test_spellings_of_one_keyword_count_once():
    router = Router(
        [
            Route(expert="a", keywords=("loan", "LOAN", "loans", "lo\u00adan")),
            Route(expert="b", keywords=("bond", "stock")),
        ]
    )
    assert router.decide("loans, bonds and stocks") == Decision("b", ("bond", "stock"))
    assert router.decide("a loan") == Decision("a", ("loan",))


def test_matched_keywords_are_as_configured_in_their_order():
    router = Router([Route(expert="a", keywords=("S&P 500", "Bond", "loan"))])
    assert router.decide("bonds of the s&p 500").matched == ("S&P 500", "Bond")


def test_always_active_expert_is_the_fallback():
    router = Router(
        [
            Route(expert="a", keywords=("loan",)),
            Route(expert="b", always_active=True),
            Route(expert="c", always_active=True),
        ]
    )
    assert router.decide("the weather") == Decision("b", ())
    assert router.decide("") == Decision("b", ())
    assert router.decide("a loan") == Decision("a", ("loan",))


def test_always_active_expert_with_keywords_competes():
    router = Router(
        [Route(expert="a", keywords=("loan",)), Route(expert="b", keywords=("bond", "stock"), always_active=True)]
    )
    assert router.decide("loan, bond, stock").expert == "b"


def test_nobody_answers_without_a_fallback():
    with pytest.raises(UserError, match=r"no keyword of any expert matches.*always_active: true"):
        Router([Route(expert="a", keywords=("loan",))]).decide("the weather")


@pytest.mark.parametrize("keyword", ["", "  ", "\u200b"])
def test_empty_keyword_is_refused(keyword):
    with pytest.raises(UserError, match=r"expert a: the keyword .* is empty"):
        Route(expert="a", keywords=("loan", keyword))


def test_bad_routes_are_refused():
    with pytest.raises(UserError, match="must be one of word, substring"):
        Route(expert="a", match="regex")
    with pytest.raises(UserError, match="no experts"):
        Router([])
    with pytest.raises(UserError, match="expert a is listed twice"):
        Router([Route(expert="a"), Route(expert="a")])


@given(st.text(min_size=1, max_size=12), st.text(max_size=12), st.text(max_size=12))
def test_a_keyword_between_spaces_is_found(keyword, before, after):
    if not normalised(keyword):
        return
    assert found(keyword, f"{before} {keyword} {after}")
    assert found(keyword, f"{before}{keyword}{after}", match="substring") or _touched(keyword, before, after)


def _touched(keyword, before, after):
    """Say whether Unicode joins the keyword's characters with its neighbours' (a combining mark, a folded sequence)."""
    return normalised(keyword) not in normalised(before + keyword + after)


@given(WORDS, WORDS)
def test_a_word_inside_another_is_not_found(keyword, other):
    assert not found(keyword, f"x{keyword}y{other}") or keyword in (other, f"{other}s")


@given(st.text(max_size=30))
def test_case_and_composition_do_not_matter(text):
    assert normalised(normalised(text)) == normalised(text)
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert normalised(unicodedata.normalize(form, text)) == normalised(text)


@given(st.text(alphabet=string.ascii_letters + " ", max_size=30))
def test_letters_in_any_case_route_alike(text):
    assert normalised(text.upper()) == normalised(text.lower()) == normalised(text)


@given(st.lists(st.lists(WORDS, max_size=4), min_size=1, max_size=5), st.lists(WORDS, max_size=8))
def test_decision_is_the_first_with_the_highest_count(keywords, question):
    routes = [Route(expert=str(i), keywords=tuple(words)) for i, words in enumerate(keywords)]
    fallback = Route(expert="fallback", always_active=True)
    decision = Router([*routes, fallback]).decide(" ".join(question))
    counts = [len(route.found_in(normalised(" ".join(question)))) for route in routes]
    if max(counts) == 0:
        assert decision == Decision("fallback", ())
    else:
        assert decision.expert == str(counts.index(max(counts)))
        assert len(decision.matched) == max(counts)
        assert set(decision.matched) <= set(keywords[int(decision.expert)])


@given(WORDS)
def test_every_word_is_found_in_the_plural(word):
    ending = "ies" if len(word) > 1 and word[-1] == "y" and word[-2] not in "aeiou" else None
    if ending:
        plural = word[:-1] + ending
    elif word.endswith(("s", "x", "z", "ch", "sh")):
        plural = word + "es"
    else:
        plural = word + "s"
    own = word in ("futures", "goods", "means", "news", "odds", "series", "species") or word.endswith(("ics", "sis"))
    assert found(word, plural) or own or len(word) == 1


# Excluded words and priorities


def chosen(question, *routes):
    return Router(routes).decide(question).expert


def test_an_excluded_word_keeps_an_expert_out_whatever_else_the_question_holds():
    banking = Route(expert="a", keywords=("bank", "loan", "deposit"), exclude=("river",))
    nature = Route(expert="b", keywords=("river",))
    assert chosen("a loan of a bank, a deposit", banking, nature) == "a"
    assert chosen("a loan for the bank of a river, a deposit", banking, nature) == "b"
    assert chosen("a bank by RIVERS", banking, nature) == "b"
    assert chosen("a bank driver", banking, nature) == "a"


def test_an_excluded_word_keeps_the_fallback_out_too():
    fallback = Route(expert="a", always_active=True, exclude=("medicine",))
    other = Route(expert="b", always_active=True)
    assert chosen("anything", fallback, other) == "a"
    assert chosen("a medicine", fallback, other) == "b"
    with pytest.raises(UserError, match=r"contains a word that excludes a \(`routing.exclude`\)"):
        Router([fallback]).decide("a medicine")


def test_an_excluded_substring_is_found_as_a_keyword_would_be():
    route = Route(expert="a", keywords=("银行",), exclude=("河",), match="substring")
    fallback = Route(expert="b", always_active=True)
    assert chosen("银行在哪里", route, fallback) == "a"
    assert chosen("河边的银行", route, fallback) == "b"


def test_an_empty_excluded_word_is_refused():
    with pytest.raises(UserError, match="is empty"):
        Route(expert="a", exclude=(" ",))


def test_priority_decides_between_as_many_matches_and_never_against_more():
    low = Route(expert="low", keywords=("loan", "bank"))
    high = Route(expert="high", keywords=("loan",), priority=5)
    assert chosen("a loan", low, high) == "high"
    assert chosen("a loan", high, low) == "high"
    assert chosen("a loan of a bank", low, high) == "low"
    lowest = Route(expert="lowest", keywords=("loan",), priority=-1)
    assert chosen("a loan", lowest, low) == "low"


def test_priority_chooses_among_fallbacks():
    routes = [Route(expert="a", always_active=True), Route(expert="b", always_active=True, priority=1)]
    assert chosen("anything", *routes) == "b"


@given(st.lists(st.tuples(WORDS, st.integers(-2, 2)), min_size=1, max_size=6), st.lists(WORDS, max_size=6))
def test_the_winner_is_the_first_of_the_best_by_matches_then_priority(experts, words):
    """Compare with the rule written as a sort: most matches, then highest priority, then the routing order."""
    routes = [
        Route(expert=str(index), keywords=(keyword,), priority=priority)
        for index, (keyword, priority) in enumerate(experts)
    ]
    question = " ".join(words)
    matching = [route for route in routes if route.found_in(normalised(question))]
    router = Router([*routes, Route(expert="none", always_active=True)])
    expected = sorted(matching, key=lambda route: -route.priority)[0].expert if matching else "none"
    assert router.decide(question).expert == expected
