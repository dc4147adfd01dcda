"""Which finance terms a text uses: whole terms, plurals, phrases, spellings that are other words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealed_experts.rewards.language.glossary import BANKING, INVESTMENT, terms, terms_in


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("each beach reaches", set()),
        ("an ACH transfer", {"ACH"}),
        ("an ach transfer", {"ACH"}),
        ("in April", set()),
        ("on Apr 15", set()),
        ("the APR of 5%", {"APR"}),
        ("the apr is", {"APR"}),
        ("two APRs", {"APR"}),
        ("arm and Arm", set()),
        ("an ARM loan", {"ARM", "loan"}),
        ("Ira Smith pinned a roe deer on the nav bar", set()),
        ("an IRA, its NAV and ROE", {"IRA", "NAV", "ROE"}),
        ("deposits", {"deposit"}),
        ("deposit, deposits, DEPOSIT", {"deposit"}),
        ("depositor", set()),
        ("ETFs", {"ETF"}),
        ("etfx", set()),
        ("private equities", {"equity"}),
        ("the bank's balance", {"balance"}),
        ("the portfolio's beta", {"portfolio", "beta"}),
        ("the portfolio’s beta", {"portfolio", "beta"}),
        ("betas", {"beta"}),
        ("alphabet", set()),
        ("Sharpe  ratio", {"Sharpe ratio"}),
        ("sharpe\nratios", {"Sharpe ratio"}),
        ("Sharpe\u00a0ratio", {"Sharpe ratio"}),
        ("**Sharpe** ratio", {"Sharpe ratio"}),
        ("interest-rate", {"interest rate"}),
        ("interest\u2011rate", {"interest rate"}),
        ("interest rates", {"interest rate"}),
        ("the interest rate on interest", {"interest rate", "interest"}),
        ("interest. Rate it", {"interest"}),
        ("interest, rate", {"interest"}),
        ("interest\n\nrate", {"interest"}),
        ("- interest\n- rate", {"interest"}),
        ("* interest\n* rate", {"interest"}),
        ("interest - rate", {"interest"}),
        ("certificates of deposit", {"certificate of deposit"}),
        ("certificate of deposits", {"certificate of deposit"}),
        ("a CD", {"certificate of deposit"}),
        ("an exchange traded fund (ETF)", {"ETF"}),
        ("exchange-traded funds", {"ETF"}),
        ("annual percentage rate (APR)", {"APR"}),
        ("home equity line of credit", {"HELOC"}),
        ("home equity and a line of credit", {"equity", "line of credit"}),
        ("a 401(k) or 401k", {"401(k)"}),
        ("401 k", set()),
        ("P/E", {"P/E"}),
        ("the P/E ratio", {"P/E"}),
        ("pe ratio", set()),
        ("DCF and EPS", {"DCF", "EPS"}),
        ("annuities, commodities and beneficiaries", {"annuity", "commodity", "beneficiary"}),
        ("yields to maturity", {"yield to maturity"}),
        ("ＡＰＲ", {"APR"}),
        ("fixed_rate", {"fixed rate"}),
    ],
)
def test_terms_in(text, found):
    assert terms_in(text) == found


def listed(text):
    return [entry.split("=")[0].strip() for entry in " ".join(text.split()).split(",")]


def test_there_are_more_than_sixty_terms_of_each_domain_and_none_twice():
    banking, investment = listed(BANKING), listed(INVESTMENT)
    assert len(banking) > 60
    assert len(investment) > 60
    names = [name.casefold() for term, others in terms().items() for name in (term, *others)]
    assert len(set(names)) == len(names)
    assert list(terms()) == banking + investment


def test_the_terms_that_were_asked_for_are_there():
    wanted = "deposit, withdrawal, APR, APY, FDIC, mortgage, amortization, collateral, escrow, portfolio"
    wanted += ", diversification, ETF, dividend, Sharpe ratio, beta, DCF, EPS, ACH"
    assert terms_in(wanted) == set(wanted.split(", "))


def test_every_name_is_found_and_means_its_term():
    for term, others in terms().items():
        for name in (term, *others):
            assert terms_in(f"Is the {name} new?") == {term}, name
            assert terms_in(f"Is the {name.upper()} new?") == {term}, name
            assert term not in terms_in(f"Is the x{name}x new?"), name


@given(st.lists(st.sampled_from(list(terms()))))
def test_listed_terms_are_all_found_once(chosen):
    assert terms_in(". ".join(chosen)) == set(chosen)
