"""The demo's calculations: each function computes one kind of question of config/demo/*/calculations.yaml.

Rates, shares and volatilities are in percent, money in dollars. A function returns None for values that do not make a
sensible question.
"""

import dataclasses
import itertools
import math
import string
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from sealed_experts.data.demo_glossary import CALCULATIONS, DEMO_FOLDER, in_fixed_order, read_yaml
from sealed_experts.errors import UserError

Results = dict[str, float] | None

FDIC_LIMIT = 250_000
EXPERT_INSTANCES = 60  # of each kind
SMALL_LOAN, LONG_YEARS = 50_000, 10  # small loans are short, home loans are long


def loan_payment(*, amount: float, rate: float, years: float) -> Results:
    """Monthly payment of an amortized loan: P·i / (1 - (1 + i)^-n)."""
    if (amount < SMALL_LOAN) != (years <= LONG_YEARS):
        return None
    payment = _payment(amount, rate, years)
    return {"payment": payment, "interest": payment * 12 * years - amount}


def first_payment(*, amount: float, rate: float, years: float) -> Results:
    """Interest and principal in the first monthly payment of an amortized loan."""
    if (amount < SMALL_LOAN) != (years <= LONG_YEARS):
        return None
    interest = amount * rate / 1200
    return {"interest": interest, "principal": _payment(amount, rate, years) - interest}


def compound_interest(*, amount: float, rate: float, years: float) -> Results:
    """Balance of a deposit compounded yearly: P·(1 + r)^t."""
    balance = amount * (1 + rate / 100) ** years
    return {"balance": balance, "interest": balance - amount}


def simple_interest(*, amount: float, rate: float, years: float) -> Results:
    """Interest on the first amount only: P·r·t."""
    interest = amount * rate / 100 * years
    return {"interest": interest, "total": amount + interest}


def annual_yield(*, rate: float, periods: float) -> Results:
    """Annual percentage yield of a nominal rate: (1 + r/m)^m - 1."""
    apy = ((1 + rate / 100 / periods) ** periods - 1) * 100
    return {"apy": apy, "gap": apy - rate} if apy - rate >= 0.01 else None


def fee_apr(*, amount: float, rate: float, fee: float) -> Results:
    """Annual percentage rate of a one-year loan that is repaid at its end; the fee is deducted from the amount."""
    cost = amount * (rate + fee) / 100
    return {"cost": cost, "apr": cost / (amount * (1 - fee / 100)) * 100}


def loan_to_value(*, price: float, share: float) -> Results:
    """Loan and loan-to-value ratio after a down payment of `share` percent."""
    down = price * share / 100
    return {"down": down, "loan": price - down, "ratio": (price - down) / price * 100}


def debt_to_income(*, debts: float, income: float) -> Results:
    """Monthly debt payments as a share of monthly income."""
    return {"ratio": debts / income * 100, "left": income - debts}


def insured_deposit(*, balance: float) -> Results:
    """The part of a balance above the limit of deposit insurance (12 U.S.C. 1821(a)(1)(E): $250,000)."""
    uninsured = max(0, balance - FDIC_LIMIT)
    return {"uninsured": uninsured, "share": (balance - uninsured) / balance * 100}


def capital_ratio(*, capital: float, assets: float) -> Results:
    """Capital over risk-weighted assets, both in millions, and the capital above 8 percent of them."""
    spare = capital - 0.08 * assets
    return {"ratio": capital / assets * 100, "spare": spare} if spare > 0 else None


def real_rate(*, rate: float, inflation: float) -> Results:
    """Fisher's equation: (1 + nominal) / (1 + inflation) - 1; `worth` is the value of $1,000 in today's money."""
    growth = (1 + rate / 100) / (1 + inflation / 100)
    return {"real": (growth - 1) * 100, "worth": 1000 * growth}


def card_interest(*, balance: float, rate: float) -> Results:
    """Interest on a card balance for a month (a twelfth of the yearly rate) and for twelve such months."""
    month = balance * rate / 1200
    return {"month": month, "year": 12 * month}


def sharpe_ratio(*, mean: float, free: float, volatility: float) -> Results:
    """Excess return over volatility (Sharpe 1966)."""
    return {"excess": mean - free, "ratio": (mean - free) / volatility}


def portfolio_volatility(*, weight: float, first: float, second: float, correlation: float) -> Results:
    """Volatility of two assets (Markowitz 1952), and how far it is below their weighted mean."""
    one, two = weight / 100 * first, (1 - weight / 100) * second
    volatility = math.sqrt(one**2 + two**2 + 2 * correlation * one * two)
    return {"volatility": volatility, "saved": one + two - volatility}


def portfolio_return(*, weight: float, first: float, second: float) -> Results:
    """Expected return of two assets, and the first one's part of it."""
    part = weight / 100 * first
    return {"mean": part + (1 - weight / 100) * second, "part": part}


def equal_weights(*, count: float, volatility: float) -> Results:
    """Volatility of equally weighted, uncorrelated assets: that of one asset over the root of their number."""
    whole = volatility / math.sqrt(count)
    return {"whole": whole, "saved": volatility - whole}


def bond_price(*, coupon: float, rate: float, years: float) -> Results:
    """Price of $1,000 face value with yearly coupons: the discounted coupons and face value."""
    if coupon == rate:
        return None  # the price is face value
    factor = (1 + rate / 100) ** -years
    price = 10 * coupon * (1 - factor) / (rate / 100) + 1000 * factor
    return {"price": price, "gap": abs(price - 1000)}


def zero_bond(*, rate: float, years: float) -> Results:
    """Price of $1,000 face value without coupons."""
    price = 1000 * (1 + rate / 100) ** -years
    return {"price": price, "gain": 1000 - price}


def current_yield(*, coupon: float, price: float) -> Results:
    """Yearly coupon over price; income and cost of ten bonds."""
    return {"ratio": coupon / price * 100, "income": 10 * coupon, "cost": 10 * price}


def price_to_earnings(*, price: float, earnings: float) -> Results:
    """Price over earnings per share, and its inverse in percent."""
    return {"ratio": price / earnings, "yield": earnings / price * 100}


def dividend_yield(*, price: float, dividend: float) -> Results:
    """Yearly dividend over price; the income of 100 shares."""
    return {"ratio": dividend / price * 100, "income": 100 * dividend}


def asset_pricing(*, free: float, beta: float, premium: float) -> Results:
    """Capital asset pricing model (Sharpe 1964): risk-free rate plus beta times the market's premium."""
    return {"required": free + beta * premium, "extra": beta * premium}


def present_value(*, amount: float, rate: float, years: float) -> Results:
    """Present value of a later sum: A / (1 + r)^t."""
    value = amount * (1 + rate / 100) ** -years
    return {"value": value, "discount": amount - value}


def growth_rate(*, first: float, factor: float, years: float) -> Results:
    """Compound annual growth rate: (last / first)^(1/t) - 1."""
    last = round(first * factor)
    return {"last": last, "growth": ((last / first) ** (1 / years) - 1) * 100, "total": (last / first - 1) * 100}


def fund_cost(*, amount: float, ratio: float) -> Results:
    """Yearly cost of a fund, and how far it is above the cost of a fund at 0.05 percent."""
    return {"cost": amount * ratio / 100, "extra": amount * (ratio - 0.05) / 100}


def _payment(amount: float, rate: float, years: float) -> float:
    monthly = rate / 1200
    return amount * monthly / (1 - (1 + monthly) ** (-12 * years))


KINDS: dict[str, Callable[..., Results]] = {
    function.__name__: function
    for function in (
        *(loan_payment, first_payment, compound_interest, simple_interest, annual_yield, fee_apr, loan_to_value),
        *(debt_to_income, insured_deposit, capital_ratio, real_rate, card_interest, sharpe_ratio, portfolio_volatility),
        *(portfolio_return, equal_weights, bond_price, zero_bond, current_yield, price_to_earnings, dividend_yield),
        *(asset_pricing, present_value, growth_rate, fund_cost),
    )
}


@dataclasses.dataclass(frozen=True)
class Calculation:
    """One instance of a kind of calculation: its given values and its results."""

    kind: str
    given: dict[str, Any]
    texts: dict[str, Any]
    slots: dict[str, Any]

    @property
    def name(self) -> str:
        """A unique name: the kind and the given values."""
        return f"{self.kind} {self.given}"

    def write(self, template: str) -> str:
        """Fill a template of calculations.yaml."""
        return FORMATTER.format(template, **self.slots)


def instances(domain: str, *, folder: Path = DEMO_FOLDER) -> dict[str, list[Calculation]]:
    """Return all instances of a domain's kinds, each kind in a fixed mixed order.

    Raises:
        UserError: calculations.yaml names a kind without a function here.
    """
    path = folder / domain / CALCULATIONS
    kinds = read_yaml(path)
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise UserError(f"{path}: no function computes {unknown[0]!r}; known are {', '.join(KINDS)}")
    return {kind: in_fixed_order(_combine(kind, texts), name=lambda made: made.name) for kind, texts in kinds.items()}


def _combine(kind: str, texts: dict[str, Any]) -> Iterator[Calculation]:
    names = list(texts["values"])
    for combination in itertools.product(*texts["values"].values()):
        given = dict(zip(names, combination, strict=True))
        arguments, shown = dict(given), dict(given)
        if "compounding" in given:  # the text shows a word, the function takes a number
            shown["compounding"], arguments["periods"] = arguments.pop("compounding")
        results = KINDS[kind](**arguments)
        if results is not None:
            yield Calculation(kind, given, texts, shown | results)


def parted(calculations: Sequence[Calculation]) -> tuple[Sequence[Calculation], Sequence[Calculation]]:
    """Divide the instances of a kind: the first for the experts' questions, the rest for the base's general text."""
    end = min(EXPERT_INSTANCES, 2 * len(calculations) // 3)
    return calculations[:end], calculations[end:]


class _Formatter(string.Formatter):
    """Formats {amount:dollars} as $1,200, money as $1,200.50, rate as 4.5%, percent as 4.50%, number as 1.25."""

    FORMS: ClassVar = {
        "dollars": "${:,.0f}",
        "money": "${:,.2f}",
        "rate": "{:g}%",
        "percent": "{:.2f}%",
        "number": "{:,.2f}",
    }

    def format_field(self, value: Any, format_spec: str) -> str:
        if format_spec not in self.FORMS:
            return super().format_field(value, format_spec)
        negative = value < 0
        text = self.FORMS[format_spec].format(abs(value))
        return f"-{text}" if negative and any(digit in text for digit in "123456789") else text


FORMATTER = _Formatter()
