"""The finance glossary: find the terms that an answer uses.

A term is found as a whole word or phrase, never inside a longer word: "each" does not contain "ACH". Case does not
matter, with one exception: a spelling that is another word ("Apr" the month, "arm", "Ira" the name) is not the acronym.
White space, with at most one line break, or a hyphen separates the words of a phrase. Simple plurals count as the same
term ("deposits", "equities", "certificates of deposit"). In the lists, `=` joins names of one term, such as an acronym
and its words. If terms overlap, the longest counts: "interest rate" does not contain "interest".
"""

import functools
import re
import unicodedata
from collections.abc import Iterator

BANKING = """
    account, checking account, savings account, money market account, joint account, balance, deposit, withdrawal,
    direct deposit, certificate of deposit = CD, overdraft, bank statement, routing number, wire transfer,
    ACH = automated clearing house, ATM = automated teller machine, debit card, credit card, PIN, cashier's check,
    escrow, FDIC = Federal Deposit Insurance Corporation, NCUA = National Credit Union Administration,
    deposit insurance, credit union, central bank, Federal Reserve, interest, compound interest, simple interest,
    interest rate, fixed rate, variable rate, prime rate, APR = annual percentage rate, APY = annual percentage yield,
    basis point, fee, loan, student loan, auto loan, home equity loan, HELOC = home equity line of credit,
    line of credit = credit line, mortgage, reverse mortgage, ARM = adjustable-rate mortgage, down payment,
    closing cost, principal, amortization, origination fee, balloon payment, prepayment, refinancing, underwriting,
    collateral, lien, guarantor, borrower, lender, credit score = FICO score, credit report, credit limit,
    creditworthiness, debt, DTI = debt-to-income ratio, LTV = loan-to-value ratio, default, foreclosure, forbearance,
    charge-off, delinquency, debt consolidation, bankruptcy, grace period, late fee, KYC = know your customer,
    AML = anti-money laundering, money laundering, capital ratio, leverage ratio, reserve requirement, stress test,
    liquidity coverage ratio, Truth in Lending Act, beneficiary
"""

INVESTMENT = """
    portfolio, diversification, asset allocation, asset class, rebalancing, risk tolerance, time horizon, investment,
    investor, securities, stock, preferred stock, equity, dividend, dividend yield, stock split,
    buyback = share repurchase, IPO = initial public offering, market capitalization = market cap, bond,
    corporate bond, municipal bond, Treasury bill = T-bill, Treasury bond, coupon, maturity, face value = par value,
    yield, yield to maturity, current yield, yield curve, duration, credit rating, credit risk, credit spread,
    mutual fund, index fund, hedge fund, target-date fund, money market fund, ETF = exchange-traded fund,
    REIT = real estate investment trust, NAV = net asset value, expense ratio, sales load, tracking error, benchmark,
    Sharpe ratio, Sortino ratio, alpha, beta, volatility, standard deviation, correlation, drawdown, value at risk,
    systematic risk, inflation, liquidity, leverage, risk premium, risk-free rate, efficient frontier,
    CAPM = capital asset pricing model, DCF = discounted cash flow, NPV = net present value, present value,
    future value, IRR = internal rate of return, WACC = weighted average cost of capital, discount rate,
    terminal value, intrinsic value, cash flow, free cash flow, EPS = earnings per share,
    P/E = price-to-earnings ratio = P/E ratio, price-to-book ratio, ROE = return on equity, ROA = return on assets,
    ROI = return on investment, EBITDA, revenue, net income, profit margin, book value, balance sheet,
    income statement, CAGR = compound annual growth rate, capital gain, capital loss, tax-loss harvesting,
    dollar-cost averaging, futures contract, call option, put option, strike price, derivative, short selling,
    margin call, limit order, market order, bid-ask spread, broker, commodity, annuity, 401(k) = 401k,
    IRA = individual retirement account, bull market, bear market
"""

# With this spelling they are words or names, not acronyms.
_OTHER_SPELLINGS = "Apr arm arms Arm Arms ira Ira iras Iras nav navs Nav Navs pin pins Pin Pins roe roes Roe Roes"
_OTHER_WORDS = frozenset(_OTHER_SPELLINGS.split())
# Words, and marks that break a phrase: punctuation, an empty line, a bullet or dash. A hyphen before a word and marks
# of emphasis do not break it.
_TOKENS = re.compile(r"[^\W_]+|\n[^\S\n]*\n|(?<!\S)[*+](?!\S)|[-\u2010](?![^\W_])|[^\w\s*\-\u2010`]")
_PHRASE_HEADS = ("of", "to", "on", "at", "per")

Words = tuple[str, ...]


def terms_in(text: str) -> set[str]:
    """Return the distinct terms that a text uses, each by its first name in the lists."""
    entries, others = _entries(), _OTHER_WORDS
    words = tokens(text)
    folded = [word.casefold() for word in words]
    found = set()
    place, end = 0, len(words)
    while place < end:
        step = 1
        for phrase, term in entries.get(folded[place], ()):
            length = len(phrase)
            if length == 1:
                if words[place] not in others:
                    found.add(term)
                break
            if phrase == tuple(folded[place : place + length]):
                found.add(term)
                step = length
                break
        place += step
    return found


def tokens(text: str) -> list[str]:
    """Return the words of a text as written, and between them the marks that break a phrase."""
    return _TOKENS.findall(text if text.isascii() else unicodedata.normalize("NFKC", text))


@functools.cache
def terms() -> dict[str, tuple[str, ...]]:
    """Return {term: other names of it}."""
    entries = [entry.split("=") for entry in f"{BANKING},{INVESTMENT}".split(",")]
    named = [[" ".join(name.split()) for name in entry] for entry in entries]
    return {name: tuple(others) for name, *others in named}


@functools.cache
def _entries() -> dict[str, list[tuple[Words, str]]]:
    """Return {first word: (all words, term)}, the longest first."""
    entries: dict[str, list[tuple[Words, str]]] = {}
    for term, others in terms().items():
        for name in (term, *others):
            for words in _spellings(tuple(tokens(name.casefold()))):
                entries.setdefault(words[0], []).append((words, term))
    for alternatives in entries.values():
        alternatives.sort(key=lambda entry: -len(entry[0]))
    return entries


def _spellings(words: Words) -> Iterator[Words]:
    """Yield a name and its plural: the plural of its last word, or of the word before "of", "to", …"""
    yield words
    heads = [place for place, word in enumerate(words) if word in _PHRASE_HEADS and place]
    for place in {len(words) - 1, *(head - 1 for head in heads[:1])}:
        yield (*words[:place], _plural(words[place]), *words[place + 1 :])


def _plural(word: str) -> str:
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}es" if word.endswith(("s", "x", "ch", "sh")) else f"{word}s"
