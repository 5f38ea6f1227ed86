"""Which of several smaller models is taken."""

from __future__ import annotations

import pytest

from headway.compress.search.candidates import Candidate, choose, front, quality_loss
from headway.config.base import ConfigError
from headway.config.compression.compress import CompressConfig, TargetConfig
from headway.config.loading import validate


def candidate(name, score, latency, throughput=1.0, size=1.0):
    ratios = {"latency": latency, "throughput": throughput, "size": size}
    return Candidate(name, {}, "fp32", score, 0.1, 1.0, 1.0, 1, ratios)


def taken(candidates, primary="accuracy", original=0.9, **target):
    choice = choose(candidates, primary, original, TargetConfig.model_validate(target))
    return choice.candidate.name, choice.reached


def test_of_those_that_reach_the_target_the_best_is_taken_and_of_equals_the_fastest():
    good, fast, faster = candidate("a", 0.899, 0.5), candidate("b", 0.895, 0.3), candidate("c", 0.895, 0.2)
    assert taken([good, fast, faster], latency="0.4x") == ("c", True)
    assert taken([good, fast, faster], latency="0.5x") == ("a", True)


def test_every_part_of_the_target_counts():
    small, quick = candidate("small", 0.9, 0.9, 1.1, 0.1), candidate("quick", 0.9, 0.3, 5.0, 0.6)
    assert taken([small, quick], throughput="4x") == ("quick", True)
    assert taken([small, quick], size="0.2x") == ("small", True)
    assert taken([small, quick], size="0.2x", throughput="4x")[1] is False


def test_if_none_reaches_it_the_closest_that_is_good_enough_is_taken():
    worse, near, far = candidate("worse", 0.7, 0.1), candidate("near", 0.9, 0.5), candidate("far", 0.9, 0.9)
    assert taken([worse, near, far], latency="0.4x") == ("near", False)
    assert taken([worse], latency="0.4x") == ("worse", False)
    assert taken([worse, candidate("better", 0.8, 0.6)], latency="0.4x") == ("better", False)


def test_loss_is_relative_to_the_original_and_knows_which_way_a_score_is_better():
    assert quality_loss("accuracy", 0.882, 0.9) == pytest.approx(0.02)
    assert quality_loss("rmse", 1.02, 1.0) == pytest.approx(0.02)
    assert quality_loss("accuracy", 0.95, 0.9) < 0
    slow, quick = candidate("slow", 0.5, 0.9), candidate("quick", 0.505, 0.4)
    assert taken([slow, quick], "rmse", 0.5, latency="0.4x") == ("quick", True)
    assert taken([slow, quick], "rmse", 0.5, latency="0.4x", max_quality_loss="0.5%") == ("slow", False)


def test_what_is_beaten_in_all_that_is_wanted_is_not_on_the_front():
    one, two, beaten = candidate("1", 0.9, 0.5), candidate("2", 0.8, 0.3), candidate("3", 0.8, 0.4, size=0.1)
    target = TargetConfig(latency=0.4)
    assert front([one, two, beaten], "accuracy", 0.9, target) == [one, two]
    assert len(front([one, two, beaten], "accuracy", 0.9, TargetConfig(latency=0.4, size=0.2))) == 3


def test_targets_are_written_with_their_units_or_without():
    written = TargetConfig.model_validate({"latency": "0.4x", "max_quality_loss": "2%"})
    assert written == TargetConfig.model_validate({"latency": 0.4, "max_quality_loss": 0.02})
    assert TargetConfig.model_validate(written.model_dump(mode="json")) == written


GOOD = {"model": "m", "task": "t", "target": {"latency": 0.4}}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"target": {}}, "give latency, throughput or size: what should become smaller or faster"),
        ({"target": {"latency": "fast"}}, "target.latency: .*'fast'"),
        ({"target": {"latency": "0x"}}, "target.latency"),
        ({"search": {"depth": [1]}}, "search.depth is not allowed; allowed: layers, heads, neurons"),
        ({"finetune": {"seeds": 3}}, "finetune.seeds does not go with compress"),
        ({"finetune": {"epoch": 3}}, r"finetune.epoch"),
        (
            {"search": {"vocabulary": [9]}, "finetune": {"distill": {"hidden": 1.0}}},
            "search.vocabulary does not go with finetune.distill.hidden and relations",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(more, message):
    with pytest.raises(ConfigError, match=message):
        validate(CompressConfig, GOOD | more)


def test_the_original_teaches_unless_that_is_switched_off():
    assert validate(CompressConfig, GOOD).shared["distill"] == {"teacher": "m"}
    taught = validate(CompressConfig, GOOD | {"finetune": {"distill": {"temperature": 4.0}}})
    assert taught.shared["distill"] == {"teacher": "m", "temperature": 4.0}
    assert validate(CompressConfig, GOOD | {"finetune": {"distill": None}}).shared["distill"] is None
