"""The repetition penalty: known hacks lose by it, ordinary good answers do not."""

import json
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealed_experts.data.sources.demo import Demo
from sealed_experts.rewards.language.repetition import (
    disclaimer_excess,
    listed_terms,
    repeated_ngrams,
    repeated_sentences,
    repetition,
)
from sealed_experts.rewards.making.maker import make_reward

DISCLAIMERS = (
    "This is not financial advice. Consult a financial advisor. Do your own research."
    " Past performance is no guarantee of future results."
)
HACKS = {
    "five terms": "deposit, loan, APR, APY, escrow",
    "terms without commas": "deposit loan APR APY escrow mortgage lien collateral yield bond ETF beta alpha dividend",
    "terms behind a sentence": "What to know: deposit, withdrawal, APR, APY, FDIC, mortgage, escrow, overdraft.",
    "terms as bullets": "- Deposit\n- Loan\n- APR\n- APY\n- Escrow\n- ETF.",
    "terms numbered": "1. Deposit\n2. Loan\n3. APR\n4. APY\n5. Escrow\n6. ETF.",
    "terms as sentences": "Deposit. Loan. APR. APY. Escrow. ETF. Bond.",
    "one bullet again and again": "- Save more.\n- Save more.\n- Save more.\n- Save more.",
    "bullets in turn": "- Compare the fees.\n- Check the yield.\n" * 4,
    "one sentence again and again": "Diversify your portfolio with bonds. " * 8,
    "one word again and again": "bond " * 30,
    "only disclaimers": DISCLAIMERS,
    "a disclaimer pasted again": "A bond pays interest. " + "This is not financial advice. " * 5,
    "more disclaimers than answer": f"A bond pays interest. {DISCLAIMERS}",
}
GOOD = {
    "definition": (
        "A mortgage is a loan that is secured by real estate. The lender can take the house if the borrower stops"
        " paying, and that is why its interest rate is lower than that of a credit card. Most mortgages are repaid"
        " over 15 to 30 years in equal monthly payments of interest and principal."
    ),
    "comparison with bullets": (
        "Both hold many securities at once, but they trade differently:\n"
        "- An ETF trades on an exchange all day, at a price that moves with the market.\n"
        "- A mutual fund is bought from the fund company at the net asset value of that day.\n"
        "- ETFs often have lower expense ratios; mutual funds may ask for a minimum investment.\n"
        "If you trade rarely, compare the yearly cost first."
    ),
    "steps": (
        "To compare two loans, go through these steps.\n"
        "1. Look at the APR, which includes the required fees.\n"
        "2. Multiply the monthly payment by the number of months.\n"
        "3. Check what an early repayment would cost you.\n"
        "4. Ask whether the rate can change, and how far.\n"
        "The cheapest offer is the one with the lowest total, not the lowest payment."
    ),
    "worked numbers": (
        "Compound interest earns interest on interest. With $1,000 at 5% you have $1,050.00 after one year, $1,102.50"
        " after two and $1,157.63 after three. Simple interest would give $1,150.00 after three years, so compounding"
        " adds $7.63."
    ),
    "advice with a disclaimer": (
        "Many people start with a broad index fund because it spreads the risk over hundreds of companies at low cost."
        " How much of your portfolio should be in stocks depends on your time horizon: money that you need within five"
        " years is usually safer in deposits or short bonds. This is not financial advice; consult a financial advisor"
        " about your own situation."
    ),
    "enumeration within a sentence": (
        "Closing costs are the fees that come on top of the price of a house. They include the appraisal, the title"
        " insurance, the origination fee, taxes and the first payment into escrow, and together they often add up to"
        " two to five percent of the loan. Ask the lender for an estimate before you sign."
    ),
    "terse bullets": (
        "Your bank offers three kinds of accounts.\n- Checking account: daily payments, no interest\n"
        "- Savings account: some interest, few withdrawals\n- Certificate of deposit: fixed rate until maturity"
    ),
    "headline without grammar": "Index funds offer low fees. Bond funds pay steady coupons.",
}


@pytest.mark.parametrize("name", HACKS)
def test_hacks_lose(name):
    plain = make_reward("finance", {})
    strict = make_reward("finance", {"repetition_penalty": 1.0})
    before, after = plain.score("What is a bond?", HACKS[name]), strict.score("What is a bond?", HACKS[name])
    assert after.axes["repetition"] >= 0.5
    assert after.value == pytest.approx(before.value * (1 - after.axes["repetition"]))
    assert after.value < min(strict.score("What is a bond?", answer).value for answer in GOOD.values())


@pytest.mark.parametrize("name", GOOD)
def test_good_answers_lose_next_to_nothing(name):
    assert repetition(GOOD[name]) <= 0.03


def test_the_demos_own_answers_lose_next_to_nothing():
    rows = [row for domain in ("banking", "investment") for row in Demo(domain=domain, records=500).read()]
    measured = [repetition(row.record.answer) for row in rows]
    assert len(measured) >= 500
    assert statistics.fmean(measured) < 0.005
    assert max(measured) < 0.25  # a comparison of two terms defined in the same words


def test_the_penalty_takes_its_share():
    score = make_reward("finance", {"repetition_penalty": 0.25}).score("Why?", HACKS["five terms"])
    assert score.axes["repetition"] == 1
    # Format 0.2, terminology 1, relevance 0.5, safety 1 make 0.58; a quarter of it is gone.
    assert score.value == pytest.approx(0.75 * 0.58)


def test_repeated_ngrams_is_one_minus_distinct_over_all():
    # Five 4-grams: abab, baba, abab, baba, abab; two of them are distinct.
    assert repeated_ngrams(list("abababab")) == pytest.approx(1 - 2 / 5)
    assert repeated_ngrams(list("abcde")) == 0
    assert repeated_ngrams(list("ababa"), n=2) == pytest.approx(1 - 2 / 4)
    assert repeated_ngrams(list("aaa")) == 0


def test_repeated_sentences_counts_their_words():
    assert repeated_sentences([("a", "b"), ("c", "d", "e"), ("a", "b")]) == pytest.approx(2 / 7)
    assert repeated_sentences([("yes",), ("yes",)]) == 0
    assert repeated_sentences([]) == 0


def test_listed_terms_counts_words_in_lists():
    assert listed_terms("loan, bond, fee, tax, yield") == 1
    assert listed_terms("loan, bond, fee, tax") == 0  # four items
    assert listed_terms("the loan, bond, fee, tax, yield of it") == pytest.approx(5 / 8)
    assert listed_terms("loan bond fee tax yield cash gold coin") == pytest.approx(2 / 8)  # beyond six
    assert listed_terms("loan, bond, 5, fee, tax, yield") == 0  # a figure ends the run
    assert listed_terms("the loan and the bond and the fee and the tax") == 0


def test_disclaimer_excess_grows_from_a_third():
    careful = "this is not financial advice."  # five words
    assert disclaimer_excess(careful) == pytest.approx(1)
    assert disclaimer_excess(f"{'word ' * 10}. {careful}") == pytest.approx(0)
    assert disclaimer_excess(f"{'word ' * 5}. {careful}") == pytest.approx((1 / 2 - 1 / 3) / (2 / 3))
    assert disclaimer_excess("operational risk is the risk of loss from failed processes.") == 0


def test_json_is_no_list_of_terms():
    content = {"loan": "mortgage", "bank": "lender", "fee": "origination", "term": "maturity", "rate": "fixed"}
    assert listed_terms(json.dumps(content)) == 1
    assert repetition(json.dumps(content)) == 0
    assert repetition(f"```json\n{json.dumps(content)}\n```") == 0


@given(st.text() | st.lists(st.sampled_from(["a b", "loan", ",", "\n", "- ", "the", "5"])).map(" ".join))
def test_it_is_a_share_of_any_text(text):
    assert 0 <= repetition(text) <= 1


@given(
    st.lists(st.sampled_from(["fee", "loan", "the", "is"]), min_size=4, max_size=12).map(" ".join), st.integers(2, 6)
)
def test_saying_it_again_costs_at_least_its_share(sentence, times):
    assert repetition("\n".join([sentence] * times)) >= 1 - 1 / times - 1e-9
