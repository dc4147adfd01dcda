"""The finance reward: every rule at its borders, against values worked out by hand."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealed_experts.rewards.finance import (
    WEIGHTS,
    format_axis,
    relevance_axis,
    safety_axis,
    terminology_axis,
)
from sealed_experts.rewards.language.disclaimers import has_disclaimer
from sealed_experts.rewards.making.maker import make_reward

FINANCE = make_reward("finance", {})
AXES = ("format", "terminology", "relevance", "safety")


def words(count, *, end=""):
    return " ".join(["word"] * count) + end


def test_a_whole_answer_worked_out_by_hand():
    prompt = "Should I invest savings in bonds?"  # longer words: should, invest, savings, bonds
    response = "Bonds pay interest.\nThis is not financial advice."
    # Format: 8 words 0, newline 0.3, no false precision 0.2, ends in "." 0.2. Terminology: bond, interest.
    # Relevance: 1 of 4 words, times 1.5. Safety: asks for advice, disclaimer given.
    score = FINANCE.score(prompt, response)
    assert score.axes == {"format": 0.7, "terminology": 0.4, "relevance": 0.375, "safety": 1.0}
    assert score.value == pytest.approx(0.4 * 0.7 + 0.3 * 0.4 + 0.2 * 0.375 + 0.1 * 1.0)


def test_the_best_answer_is_exactly_one():
    response = (
        "A portfolio of stocks, bonds and one ETF spreads risk.\n- Compare every fee and the yield.\n"
        "- Past performance is no guarantee: consult a financial advisor about your portfolio first."
    )
    score = FINANCE.score("Which portfolio?", response)
    assert score.axes == dict.fromkeys(AXES, 1.0) | {"relevance": 0.75}
    assert FINANCE.score("portfolio", response).value == 1.0


@pytest.mark.parametrize("nothing", ["", " ", "\n", " \n\t\n"])
def test_an_empty_answer_has_no_structure_and_no_ending(nothing):
    score = FINANCE.score("Why?", nothing)
    assert score.axes == {"format": 0.2, "terminology": 0.0, "relevance": 0.5, "safety": 1.0}
    assert score.value == pytest.approx(0.28)
    assert FINANCE.score("Should I buy shares", nothing).value == pytest.approx(0.4 * 0.2 + 0.1 * 0.2)


@pytest.mark.parametrize(
    ("count", "value"),
    [(1, 0), (9, 0), (10, 0.1), (19, 0.1), (20, 0.3), (21, 0.3), (499, 0.3), (500, 0.3), (501, 0)],
)
def test_length_in_words(count, value):
    assert format_axis(words(count)) == pytest.approx(0.2 + value)


@pytest.mark.parametrize("text", ["a\nb", "- a", "a - b", "1. a", "see 1."])
def test_structure(text):
    assert format_axis(text + "x") == pytest.approx(0.5)


@pytest.mark.parametrize("text", ["a-b", "1, 2", "2. b", "-a", "1 . b"])
def test_no_structure(text):
    assert format_axis(text + "x") == pytest.approx(0.2)


@pytest.mark.parametrize("text", ["5.123%", "12.3456%", "112.345%", "0.000%", "a rate of 3.2345% a year"])
def test_false_precision(text):
    assert format_axis(text + " x") == 0


@pytest.mark.parametrize("text", ["5.12%", "5.123 %", "5.123", "5,123%", ".123%", "5%"])
def test_sound_precision(text):
    assert format_axis(text + " x") == pytest.approx(0.2)


@pytest.mark.parametrize("end", [".", "!", "?", ")", '"', "'"])
def test_endings(end):
    assert format_axis(f"yes{end}") == pytest.approx(0.4)
    assert FINANCE.score("", f" yes{end} \n").axes["format"] == pytest.approx(0.4)


@pytest.mark.parametrize("end", ["", ",", ":", ";", "]", "-"])
def test_no_ending(end):
    assert format_axis(f"yes{end}") == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("nothing to see", 0.0),
        ("a loan", 0.4),
        ("a loan, loans and the LOAN", 0.4),
        ("a loan with collateral", 0.4),
        ("a loan with collateral in escrow", 0.7),
        ("loan, collateral, escrow, lien", 0.7),
        ("loan, collateral, escrow, lien, mortgage", 1.0),
        ("loan, collateral, escrow, lien, mortgage, beta", 1.0),
    ],
)
def test_terminology_counts_distinct_terms(text, value):
    assert terminology_axis(text) == value


@pytest.mark.parametrize(
    ("prompt", "response", "value"),
    [
        ("What is a fee", "nothing", 0.0),  # "what" is asked for
        ("is a fee", "a fee", 0.5),  # no word of four letters
        ("1234 a5b6", "1234", 0.5),
        ("", "", 0.5),
        ("bond", "A BOND.", 1.0),
        ("bond bond yield", "bond", 0.75),  # distinct words: one of two
        ("bond yield price", "the price", 0.5),
        ("bond yield price", "yield, price", 1.0),  # 2/3 · 1.5
        ("bond yield price cost", "yield price cost", 1.0),  # at most 1
        ("bond", "bonds vagabond", 0.0),  # whole words
        ("the bank's rate", "a bank charges the rate", 1.0),
        ("long-term", "long or term", 1.0),
        ("Straße", "STRASSE", 1.0),
    ],
)
def test_relevance(prompt, response, value):
    assert relevance_axis(prompt, response) == pytest.approx(value)


@pytest.mark.parametrize(
    "prompt",
    [
        *("Should I invest?", "INVESTING early", "an investment", "two investors", "reinvest dividends"),
        *("What to buy?", "buying a car", "who buys it", "a buyer", "the buyer's premium", "a share buyback"),
        *("sell now", "selling", "who sells", "the sellers", "a sell-off", "my portfolio", "two portfolios"),
        *("a stock", "stocks", "the stock-market", "_stock_", "recommend one", "any recommendations?", "recommended"),
        *("the best stock", "the best portfolio", "preferred stock."),
    ],
)
def test_prompts_that_ask_for_advice_need_a_disclaimer(prompt):
    full_width = prompt.translate({letter: letter + 0xFEE0 for letter in range(ord("A"), ord("z") + 1)})
    assert safety_axis(full_width, "Yes, do.") == 0.2
    assert safety_axis(prompt, "Yes, do.") == 0.2
    assert safety_axis(prompt, "") == 0.2
    assert safety_axis(prompt, "Yes. This is not financial advice.") == 1.0


@pytest.mark.parametrize(
    "prompt",
    [
        *("", "What is a mortgage?", "livestock", "stockings", "a best-seller", "best seller lists", "bestselling"),
        *("investigate the fraud", "an investiture", "buyer2", "busy", "self", "Woodstock", "stocking", "cellar"),
    ],
)
def test_other_prompts_do_not(prompt):
    assert safety_axis(prompt, "Yes, do.") == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "This is not financial advice",
        "This is NOT FINANCIAL ADVICE!",
        "this is not\n  financial\tadvice",
        "**Not** financial advice.",
        "It is not intended as financial advice.",
        "not meant to be taken as financial or legal advice",
        "does not constitute financial advice",
        "Please consult a financial planner.",
        "Consult a professional",
        "consult an advisor",
        "consult your adviser first",
        "Consult with a licensed financial advisor",
        "consult a qualified tax professional",
        "consulting financial advisors helps",
        "Do your own research.",
        "do  your\nown research",
        "Past performance is no guarantee of future results.",
        "Past performance does not guarantee future results",
        "past performance isn’t a guarantee",
        "Past performance is not indicative of future results.",
        "This isn't financial advice.",
        "Ｔｈｉｓ ｉｓ ｎｏｔ ｆｉｎａｎｃｉａｌ ａｄｖｉｃｅ",
        "nor is this financial advice",
        "You risk losing your deposit",
        "Past  performance, as ever, cannot guarantee anything",
        "There is a risk of losing money",
        "risk of loss",
        "the risks of a total loss",
    ],
)
def test_disclaimers(text):
    assert has_disclaimer(text)
    assert has_disclaimer(f"Buy it. {text}".upper())


@pytest.mark.parametrize(
    "text",
    [
        *("", "This is financial advice.", "Not bad. Financial advice follows.", "a knot financial advice"),
        *("consult the financial statements", "consult the table", "a consultant", "do research", "your own research"),
        *("Past performance was good. We guarantee it.", "past performance guarantees success", "no guarantee"),
        *("a risk of fire", "losing money", "risk of floss", "past performance indicates success"),
    ],
)
def test_no_disclaimers(text):
    assert not has_disclaimer(text)


def test_weights():
    assert dict(WEIGHTS) == {"format": 0.4, "terminology": 0.3, "relevance": 0.2, "safety": 0.1}
    assert FINANCE.weights == WEIGHTS
    assert math.fsum(WEIGHTS.values()) == 1


TEXT = st.text() | st.lists(
    st.sampled_from(["loan", "not financial advice", "risk of ", "buy", "1.", "\n", "- ", "9.999%", "ACH", "’", "*"])
).map(" ".join)


@given(prompt=TEXT, response=TEXT)
def test_any_text_has_a_score_that_is_the_sum_of_its_axes(prompt, response):
    score = FINANCE.score(prompt, response)
    assert tuple(score.axes) == AXES
    assert all(0 <= value <= 1 for value in (score.value, *score.axes.values()))
    assert score.value == pytest.approx(sum(WEIGHTS[axis] * value for axis, value in score.axes.items()))
    assert FINANCE.score(prompt, response) == score


UNITS = [
    *(
        "\n",
        " ",
        "!",
        "a",
        "1",
        "* ",
        "1. ",
        "1.1",
        "consult a ",
        "past performance ",
        "risk of a b ",
        "not a ",
        "```\n",
    ),
    *("[", "{", "interest ", "\n ", "-", "a-", "certificate of ", "a'b-", "best-sell", "\ud800", "é", "not an or "),
]


@pytest.mark.parametrize("unit", UNITS, ids=repr)
def test_long_texts_take_no_longer_than_their_length_asks(unit):
    reward = make_reward("finance", {"repetition_penalty": 1.0})
    text = unit * (100_000 // len(unit)) + "x"
    started = time.perf_counter()
    reward.score(text, text)
    assert time.perf_counter() - started < 2  # 0.02 to 0.2 s; a quadratic pattern takes minutes


def test_a_batch_costs_a_small_part_of_a_step():
    answer = (
        "In short, a bond is a loan to its issuer that pays a coupon. Why it matters: prices fall when yields rise. "
    )
    batch = [(f"Should I buy bond number {n}?", f"{answer}Check number {n}.") for n in range(128)]
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        for prompt, response in batch:
            FINANCE.score(prompt, response)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.1  # 0.007 s on one core; a step of 128 rollouts takes seconds
