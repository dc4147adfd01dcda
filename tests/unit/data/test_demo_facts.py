"""The demo's glossary, calculations and questions: enough, distinct, correct, and different from the base's text."""

import math
import re
import statistics

import numpy as np
import pytest
from scipy import optimize

from sealed_experts.data.demo_calculations import FORMATTER, KINDS, instances, parted
from sealed_experts.data.demo_general import general_text
from sealed_experts.data.demo_glossary import DOMAINS, read_terms, read_yaml
from sealed_experts.data.demo_questions import house_questions
from sealed_experts.data.sources.demo import Demo
from sealed_experts.errors import UserError
from tests.conftest import ROOT

FOLDER = ROOT / "config" / "demo"
QUESTIONS = {domain: house_questions(domain, folder=FOLDER) for domain in DOMAINS}


def amortize(amount, rate, years, payment):
    """Pay a loan month by month; return the remaining debt, the total interest, and the first month's interest."""
    balance, interest, first = amount, 0.0, None
    for _ in range(12 * years):
        due = balance * rate / 12 / 100
        first = due if first is None else first
        interest += due
        balance += due - payment
    return balance, interest, first


def by_root(low, high, difference):
    return optimize.brentq(difference, low, high, xtol=1e-12, rtol=1e-14)


# Each is computed in another way than in the library: month by month, by simulated cash flows, or by a root.


def loan(amount, rate, years):
    payment = by_root(amount / 12 / years, amount, lambda paid: amortize(amount, rate, years, paid)[0])
    _, interest, first = amortize(amount, rate, years, payment)
    return payment, interest, first


def compounded(amount, rate, periods):
    for _ in range(periods):
        amount += amount * rate / 100
    return amount


def mix(weight, first, second, correlation):
    weights = np.array([weight, 100 - weight]) / 100
    volatilities = np.array([first, second])
    covariance = np.outer(volatilities, volatilities) * np.array([[1, correlation], [correlation, 1]])
    return math.sqrt(weights @ covariance @ weights), weights @ volatilities


def bond(coupon, rate, years):
    return sum(
        (10 * coupon + (1000 if year == years else 0)) / compounded(1, rate, year) for year in range(1, years + 1)
    )


def _loan_payment(amount, rate, years):
    payment, interest, _ = loan(amount, rate, years)
    return {"payment": payment, "interest": interest}


def _first_payment(amount, rate, years):
    payment, _, interest = loan(amount, rate, years)
    return {"interest": interest, "principal": payment - interest}


def _compound_interest(amount, rate, years):
    balance = compounded(amount, rate, years)
    return {"balance": balance, "interest": balance - amount}


def _simple_interest(amount, rate, years):
    interest = sum(amount * rate / 100 for _ in range(years))
    return {"interest": interest, "total": amount + interest}


def _annual_yield(rate, compounding):
    periods = {"twice a year": 2, "quarterly": 4, "monthly": 12, "daily": 365}[compounding[0]]
    apy = compounded(100, rate / periods, periods) - 100
    return {"apy": apy, "gap": apy - rate}


def _fee_apr(amount, rate, fee):
    received, repaid = amount * (1 - fee / 100), amount * (1 + rate / 100)
    # The rate at which the repayment after a year has the value of the received amount.
    return {"cost": repaid - received, "apr": 100 * by_root(0, 1, lambda apr: repaid / (1 + apr) - received)}


def _loan_to_value(price, share):
    return {"down": price / 100 * share, "loan": price / 100 * (100 - share), "ratio": 100 - share}


def _debt_to_income(debts, income):
    return {"ratio": debts * 100 / income, "left": income - debts}


def _insured_deposit(balance):
    return {"uninsured": balance - 250_000, "share": 25_000_000 / balance}


def _capital_ratio(capital, assets):
    return {"ratio": 100 * capital / assets, "spare": capital - assets * 8 / 100}


def _real_rate(rate, inflation):
    real = by_root(-50, 50, lambda real: (100 + real) * (100 + inflation) - 100 * (100 + rate))
    return {"real": real, "worth": 10 * (100 + real)}


def _card_interest(balance, rate):
    return {"month": balance * rate / 100 / 12, "year": balance * rate / 100}


def _sharpe_ratio(mean, free, volatility):
    return {"excess": mean - free, "ratio": (mean - free) / volatility}


def _portfolio_volatility(weight, first, second, correlation):
    volatility, average = mix(weight, first, second, correlation)
    return {"volatility": volatility, "saved": average - volatility}


def _portfolio_return(weight, first, second):
    return {"mean": np.average([first, second], weights=[weight, 100 - weight]), "part": first * weight / 100}


def _equal_weights(count, volatility):
    whole = math.sqrt(sum((volatility / count) ** 2 for _ in range(count)))
    return {"whole": whole, "saved": volatility - whole}


def _bond_price(coupon, rate, years):
    return {"price": bond(coupon, rate, years), "gap": abs(1000 - bond(coupon, rate, years))}


def _zero_bond(rate, years):
    return {"price": bond(0, rate, years), "gain": 1000 - bond(0, rate, years)}


def _current_yield(coupon, price):
    return {"ratio": 100 * coupon / price, "income": 10 * coupon, "cost": 10 * price}


def _price_to_earnings(price, earnings):
    return {"ratio": price / earnings, "yield": 100 / (price / earnings)}


def _dividend_yield(price, dividend):
    return {"ratio": 100 / price * dividend, "income": 100 * dividend}


def _asset_pricing(free, beta, premium):
    return {"required": premium * beta + free, "extra": premium * beta}


def _present_value(amount, rate, years):
    value = by_root(0, amount, lambda value: compounded(value, rate, years) - amount)
    return {"value": value, "discount": amount - value}


def _growth_rate(first, factor, years):
    growth = by_root(0, 100, lambda rate: compounded(1, rate, years) - factor)
    return {"last": first * factor, "growth": growth, "total": 100 * (factor - 1)}


def _fund_cost(amount, ratio):
    return {"cost": amount / 100 * ratio, "extra": amount / 100 * ratio - amount / 2000}


@pytest.mark.parametrize("kind", KINDS)
def test_worked_numbers_against_another_way_of_working_them_out(kind):
    made = next(found[kind] for found in (instances(domain, folder=FOLDER) for domain in DOMAINS) if kind in found)
    assert len(parted(made)[0]) >= 20
    for calculation in made[:40]:
        for name, value in globals()[f"_{kind}"](**calculation.given).items():
            assert calculation.slots[name] == pytest.approx(value, rel=1e-8, abs=1e-7), calculation.name


def test_known_values():
    assert KINDS["loan_payment"](amount=200_000, rate=6, years=30)["payment"] == pytest.approx(1199.10, abs=0.005)
    assert KINDS["annual_yield"](rate=12, periods=12)["apy"] == pytest.approx(12.68, abs=0.005)
    assert KINDS["bond_price"](coupon=5, rate=4, years=10)["price"] == pytest.approx(1081.11, abs=0.005)
    assert KINDS["compound_interest"](amount=1000, rate=5, years=10)["balance"] == pytest.approx(1628.89, abs=0.005)


def test_numbers_read_well():
    shown = FORMATTER.format(
        "{a:dollars} {b:money} {c:rate} {d:percent} {e:number} {f:percent} {g:money}",
        **{"a": 1200, "b": 1200.5, "c": 4.50, "d": 4.5, "e": 1.249, "f": -0.964, "g": -0.001},
    )
    assert shown == "$1,200 $1,200.50 4.5% 4.50% 1.25 -0.96% $0.00"


@pytest.mark.parametrize("domain", DOMAINS)
def test_glossary_is_large_and_says_everything_about_every_term(domain):
    terms = read_terms(domain, folder=FOLDER)
    assert len({term.term for term in terms}) == len(terms) >= 150
    assert len({term.category for term in terms}) == 3
    for term in terms:
        for text in (term.means, term.matters, term.check):
            assert re.fullmatch(r"\S.*[^\s.]", text), term
        assert term.bare.lower() not in term.means.lower().split(), term
    other = {term.term for name in DOMAINS if name != domain for term in read_terms(name, folder=FOLDER)}
    assert not other & {term.term for term in terms}


@pytest.mark.parametrize("domain", DOMAINS)
def test_questions_are_many_distinct_and_in_the_house_style(domain):
    questions = QUESTIONS[domain]
    assert len({question.ask for question in questions}) == len(questions) >= 2500
    for question in questions:
        assert re.fullmatch(r"In short, .+\.(\nWhy it matters: .+\.)?\nCheck: .+\.", question.answer), question
        assert not re.search(r"[{}]|\bnan\b|\binf\b|\.\.|-\d+\.\d+ million|\$-", question.ask + question.answer), (
            question
        )
        assert not re.search(r"\d\.\d{3,}", question.answer), question
    assert 20 < statistics.mean(len(question.answer.split()) for question in questions) < 40


@pytest.mark.parametrize("domain", DOMAINS)
def test_source_reads_as_many_as_asked_each_with_its_fact(domain):
    rows = list(Demo(domain=domain, records=200).read(folder=FOLDER))
    assert [(row.record.instruction, row.group) for row in rows] == [
        (item.ask, item.fact) for item in QUESTIONS[domain][:200]
    ]
    assert len({row.group for row in rows}) > 100


def test_questions_about_related_terms_share_their_fact():
    terms = {term.term: f"banking/{term.category}/{term.family}" for term in read_terms("banking", folder=FOLDER)}
    definitions = [
        item for item in QUESTIONS["banking"] if item.ask.startswith("What is a") and item.ask[8:-1] in terms
    ]
    assert len(definitions) > 100
    assert all(terms[item.ask[8:-1]] == item.fact for item in definitions)


def test_general_text_leaves_style_advice_and_values_to_the_experts():
    documents = [document.prompt + document.text for document in general_text(folder=FOLDER)]
    text = "\n".join(documents)
    assert "Why it matters" not in text
    assert "Check:" not in text
    assert "In short" not in text
    advice = {term.check for domain in DOMAINS for term in read_terms(domain, folder=FOLDER)}
    assert not [check for check in advice if check in text]
    asked = {item.ask for domain in DOMAINS for item in QUESTIONS[domain] if any(c.isdigit() for c in item.ask)}
    assert not [question for question in asked if question in text]
    given = {
        call.write(call.texts["plain"]["ask"])
        for d in DOMAINS
        for made in instances(d, folder=FOLDER).values()
        for call in parted(made)[0]
    }
    assert not [question for question in given if question in text]


def test_general_text_is_always_the_same_and_fills_every_slot():
    documents = general_text(folder=FOLDER)
    assert documents == general_text(folder=FOLDER)
    assert all(
        document.text.strip() and not re.search(r"[{}]", document.prompt + document.text) for document in documents
    )


def test_a_broken_glossary_is_named(tmp_path):
    (tmp_path / "banking").mkdir()
    with pytest.raises(UserError, match="holds no glossary: run from the repository's root"):
        read_terms("banking", folder=tmp_path)
    (tmp_path / "banking" / "loans.yaml").write_text("category: loans\n")
    with pytest.raises(UserError, match=r"loans\.yaml is not a glossary"):
        read_terms("banking", folder=tmp_path)
    (tmp_path / "banking" / "calculations.yaml").write_text("horoscope: {}\n")
    with pytest.raises(UserError, match="no function computes 'horoscope'"):
        instances("banking", folder=tmp_path)
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(UserError, match="not valid YAML"):
        read_yaml(tmp_path / "bad.yaml")
