"""What a setting is searched over, as it is written in YAML."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from ray import tune

from headway.config.base import ConfigError
from headway.sweeps.search.domain import Range, parse_domain


@pytest.mark.parametrize(
    ("written", "values"),
    [
        ("randint(1, 4)", {1, 2, 3}),
        ("lograndint(1, 4)", {1, 2, 3}),
        ("qrandint(8, 32, 8)", {8, 16, 24, 32}),
        ("qlograndint(8, 32, 8)", {8, 16, 24, 32}),
        ("quniform(0.0, 0.3, 0.1)", {0.0, 0.1, 0.2, 0.3}),
        ("qloguniform(0.1, 0.4, 0.1)", {0.1, 0.2, 0.3, 0.4}),
    ],
)
def test_a_range_with_a_quantum_has_the_values_that_it_has_in_ray_tune(written, values):
    domain = parse_domain("x", written)
    assert isinstance(domain, Range)
    rng = random.Random(0)
    drawn = Counter(domain.at(rng.random()) for _ in range(2000))
    assert set(drawn) == values
    assert {type(value) for value in drawn} == {int if "randint" in written else float}
    theirs = eval(written, {name: getattr(tune, name) for name in dir(tune)})
    assert {round(theirs.sample(), 9) for _ in range(2000)} == values


def test_all_multiples_are_equally_likely_the_ends_too():
    domain = parse_domain("x", "qrandint(0, 40, 10)")
    assert isinstance(domain, Range)
    drawn = Counter(domain.at(number / 10_000) for number in range(10_000))
    assert [drawn[value] for value in (0, 10, 20, 30, 40)] == pytest.approx([2000] * 5, abs=2)


@pytest.mark.parametrize(
    ("written", "fraction", "value"),
    [
        ("uniform(1.0, 3.0)", 0.25, 1.5),
        ("loguniform(1e-4, 1e-2)", 0.5, 1e-3),
        ("qlograndint(8, 32, 8)", 0.4, 16),  # the nearest multiple to 8 x 4 ** 0.4, which is 13.9
        ("quniform(0.0, 1.0, 0.5)", 0.7, 1.0),  # each of three has a third
    ],
)
def test_below_a_value_there_is_a_fraction_of_the_range(written, fraction, value):
    domain = parse_domain("x", written)
    assert isinstance(domain, Range)
    assert domain.at(fraction) == pytest.approx(value)
    assert (domain.at(0.0), domain.at(1.0)) == pytest.approx((domain.low, domain.high))


@pytest.mark.parametrize(
    ("written", "value", "factor", "scaled"),
    [
        ("uniform(0.1, 1.0)", 0.5, 1.2, 0.6),
        ("uniform(0.1, 1.0)", 0.9, 1.2, 1.0),
        ("uniform(0.1, 1.0)", 1.0, 1.2, 1.0),
        ("loguniform(1e-5, 1e-3)", 1.1e-5, 0.8, 1e-5),
        ("randint(1, 9)", 2, 1.2, 3),
        ("randint(1, 9)", 2, 0.8, 1),
        ("randint(1, 9)", 8, 1.2, 8),
        ("quniform(0.0, 0.5, 0.1)", 0.2, 1.2, 0.3),
        ("quniform(0.0, 1.0, 0.1)", 0.2, 3.0, 0.6),
    ],
)
def test_a_value_is_scaled_within_its_range_and_by_a_quantum_at_least(written, value, factor, scaled):
    domain = parse_domain("x", written)
    assert isinstance(domain, Range)
    assert domain.scaled(value, factor) == pytest.approx(scaled)
    assert domain.scaled(value, factor) in domain


def test_membership_is_by_bounds_and_quantum():
    domain = parse_domain("x", "quniform(0.0, 0.5, 0.1)")
    assert 0.3 in domain
    assert all(value not in domain for value in (0.35, 0.6, "0.3", True))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("randint(1.5, 4)", "search.x: the bounds of 'randint(1.5, 4)' are not whole numbers"),
        ("randint(4, 4)", "are not in order"),
        ("quniform(0, 1, 0.3)", "are not multiples of a quantum above 0, 0.3"),
        ("quniform(0, 1, 0)", "are not multiples of a quantum above 0, 0"),
        ("quniform(0, 1)", "should have two bounds and a quantum"),
        ("uniform(0, 1, 0.1)", "should have two bounds"),
        ("lograndint(0, 4)", "are not above 0"),
        ("uniform(0, inf)", "are not in order"),
        ("uniform(1, 1)", "are not in order"),
        ("uniform(-1e308, 1e308)", "are not in order"),  # a number cannot be as large as their distance
        ("choice([)", "search.x"),
        ("qchoice(1, 2)", "is not a search; allowed: uniform"),
    ],
)
def test_a_search_that_is_not_written_right_is_told_in_one_line(written, message):
    with pytest.raises(ConfigError) as error:
        parse_domain("x", written)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_quantum_is_asked_for_only_if_it_is_missing():
    with pytest.raises(ConfigError, match=r"two bounds$"):
        parse_domain("x", "uniform(0, 1, 0.1)")


def test_a_range_may_have_one_whole_number():
    domain = parse_domain("x", "randint(4, 5)")
    assert isinstance(domain, Range)
    assert (domain.at(0.0), domain.at(1.0)) == (4, 4)
