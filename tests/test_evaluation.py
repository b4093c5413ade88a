"""Figures against hand and scikit-learn, and intervals that are as wide as they say."""

import json
from dataclasses import asdict, replace
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from pipeline.config import EvaluationSettings
from pipeline.evaluation import Predictions, auroc, compare, evaluate

QUICK = EvaluationSettings(resamples=500, seed=1)
FEWEST = EvaluationSettings(resamples=100)


def two_columns(scores: ArrayLike) -> NDArray[np.float64]:
    positive = np.asarray(scores, dtype=np.float64)
    return np.stack([1 - positive, positive], axis=1)


def predictions(
    labels: ArrayLike, scores: ArrayLike, folds: ArrayLike | None = None, patients: list[str] | None = None
) -> Predictions:
    """Two classes, decided at 0.5; one bag per patient and a single fold unless told otherwise."""
    given = np.asarray(labels, dtype=np.int64)
    probabilities = two_columns(scores)
    return Predictions(
        labels=given,
        probabilities=probabilities,
        decided=(probabilities[:, 1] >= 0.5).astype(np.int64),
        patients=np.array(patients or [f"p{number:03}" for number in range(len(given))]),
        folds=np.zeros(len(given), dtype=np.int64) if folds is None else np.asarray(folds, dtype=np.int64),
    )


def random_predictions(bags: int, seed: int, shift: float = 1.0, folds: int = 4) -> Predictions:
    """A third of bags positive, logistic of normal scores, a positive and a negative in every fold."""
    generator = np.random.default_rng(seed)
    labels = (np.arange(bags) // folds % 3 == 0).astype(np.int64)
    scores = 1 / (1 + np.exp(-generator.normal(shift * labels, 1)))
    return predictions(labels, scores, np.arange(bags) % folds)


class TestAuroc:
    def test_by_hand(self) -> None:
        """Of the four pairs only 0.35 against 0.4 is lost."""
        assert auroc(np.array([0, 0, 1, 1]), two_columns([0.1, 0.4, 0.35, 0.8])) == 0.75

    def test_ties_count_half(self) -> None:
        assert auroc(np.array([0, 1, 0, 1]), two_columns([0.3, 0.3, 0.3, 0.3])) == 0.5
        assert auroc(np.array([0, 0, 1]), two_columns([0.2, 0.5, 0.5])) == 0.75

    @pytest.mark.parametrize("seed", range(5))
    def test_agrees_with_scikit_learn_ties_included(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        labels, scores = generator.integers(0, 2, 50), generator.integers(0, 8, 50) / 8

        assert auroc(labels, two_columns(scores)) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)

    @pytest.mark.parametrize("seed", range(5))
    def test_of_three_classes_is_the_mean_of_one_versus_rest(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        labels, probabilities = generator.integers(0, 3, 60), generator.dirichlet(np.ones(3), 60)
        expected = roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")

        assert auroc(labels, probabilities) == pytest.approx(expected, abs=1e-12)

    def test_of_one_class_does_not_exist(self) -> None:
        assert auroc(np.array([1, 1]), two_columns([0.1, 0.2])) is None
        assert auroc(np.array([0, 1, 0]), np.full((3, 3), 1 / 3)) is None


class TestPooledWithinFold:
    def test_bags_of_different_folds_are_not_compared(self) -> None:
        """Each fold is ordered perfectly. Over all four bags the positive 0.2 would lose to the negative 0.7."""
        result = evaluate(predictions([0, 1, 0, 1], [0.7, 0.9, 0.1, 0.2], [0, 0, 1, 1]), QUICK)

        assert result.auroc.value == 1.0

    def test_folds_weigh_by_their_pairs(self) -> None:
        """Fold 0 loses its one pair, fold 1 wins its three: 3 of 4."""
        result = evaluate(predictions([0, 1, 0, 0, 0, 1], [0.9, 0.1, 0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1, 1, 1]), QUICK)

        assert result.auroc.value == 0.75

    def test_does_not_change_when_one_fold_is_rescaled(self) -> None:
        own = random_predictions(60, 0)
        scale = np.where(own.folds == 2, 0.01, 1.0)
        rescaled = replace(own, probabilities=two_columns(own.probabilities[:, 1] * scale))

        assert evaluate(rescaled, QUICK).auroc == evaluate(own, QUICK).auroc


def test_balanced_accuracy_agrees_with_scikit_learn() -> None:
    own = random_predictions(60, 0)
    expected = balanced_accuracy_score(own.labels, own.decided)

    assert evaluate(own, QUICK).balanced_accuracy.value == pytest.approx(expected, abs=1e-12)


def test_balanced_accuracy_by_hand() -> None:
    """Two of three negatives and the one positive are right: (2/3 + 1) / 2."""
    result = evaluate(predictions([0, 0, 0, 1], [0.1, 0.6, 0.2, 0.9]), QUICK)

    assert result.balanced_accuracy.value == pytest.approx(5 / 6)


class TestBootstrap:
    def test_the_same_seed_gives_the_same_interval_for_any_order_of_rows(self) -> None:
        own = random_predictions(60, 0)
        order = np.random.default_rng(0).permutation(60)
        columns = ("labels", "probabilities", "decided", "patients", "folds")
        shuffled = replace(own, **{name: getattr(own, name)[order] for name in columns})

        assert evaluate(shuffled, QUICK) == evaluate(own, QUICK)
        assert evaluate(own, QUICK.model_copy(update={"seed": 2})).auroc != evaluate(own, QUICK).auroc

    def test_more_bags_of_the_same_patients_do_not_narrow_an_interval(self) -> None:
        """Every bag five times over: all figures and intervals stay, for all of the cohort and for each fold."""
        own = random_predictions(40, 3)
        columns = ("labels", "probabilities", "decided", "patients", "folds")
        fivefold = replace(own, **{name: np.concatenate([getattr(own, name)] * 5) for name in columns})
        once, again = evaluate(own, QUICK), evaluate(fivefold, QUICK)

        assert again.auroc == once.auroc
        assert again.balanced_accuracy.low == pytest.approx(once.balanced_accuracy.low)
        for fold, other in zip(once.folds, again.folds, strict=True):
            assert (other.auroc.low, other.auroc.high) == pytest.approx((fold.auroc.low, fold.auroc.high))
        assert (again.counts.patients, again.counts.bags) == (40, 200)

    def test_agrees_with_a_loop_over_scikit_learn(self) -> None:
        """Patients drawn by index, one fold, another generator: bounds agree as far as resamples determine them."""
        own = random_predictions(50, 4, folds=1)
        generator = np.random.default_rng(99)
        replicates = []
        for _ in range(1000):
            drawn = generator.integers(0, 50, 50)
            replicates.append(roc_auc_score(own.labels[drawn], own.probabilities[drawn, 1]))
        result = evaluate(own, EvaluationSettings(resamples=2000)).auroc

        assert result.method == "bootstrap"
        assert [result.low, result.high] == pytest.approx(np.quantile(replicates, [0.025, 0.975]).tolist(), abs=0.02)

    def test_replicates_without_a_pair_are_left_out_and_counted(self) -> None:
        """Of three patients one is positive: it is missing, or alone, in (8 + 1) of 27 draws; 500 * 9 / 27 = 167."""
        result = evaluate(predictions([0, 0, 1], [0.2, 0.6, 0.4]), QUICK).auroc

        assert result.value == 0.5
        assert 130 < result.left_out < 205

    def test_a_wider_confidence_gives_a_wider_interval(self) -> None:
        own = random_predictions(60, 0)
        narrow = evaluate(own, QUICK.model_copy(update={"confidence": 0.5}))
        wide = evaluate(own, QUICK)

        assert wide.auroc.low < narrow.auroc.low < narrow.auroc.value < narrow.auroc.high < wide.auroc.high
        assert wide.folds[0].auroc.low < narrow.folds[0].auroc.low

    def test_where_every_resample_is_perfect_no_certainty_is_claimed(self) -> None:
        """Ten against ten patients without an error: the bootstrap alone would say 1 to 1."""
        result = evaluate(predictions([0] * 10 + [1] * 10, [0.1] * 10 + [0.9] * 10), QUICK)

        assert (result.auroc.method, result.auroc.value, result.auroc.high) == ("score", 1.0, 1.0)
        assert 0.7 < result.auroc.low < 0.9
        assert (result.balanced_accuracy.method, result.balanced_accuracy.value) == ("score", 1.0)
        assert 0.7 < result.balanced_accuracy.low < 0.9


class TestFolds:
    @pytest.mark.parametrize(
        ("positive", "negative"), [(m, n - m) for n in range(4, 9) for m in range(1, n)], ids=lambda number: str(number)
    )
    def test_a_head_that_knows_nothing_seldom_excludes_a_half(self, positive: int, negative: int) -> None:
        """All orders of 4 to 8 patients, each as likely as the others: a 95 % interval misses 0.5 in at most 5 %."""
        size = positive + negative
        orders = list(combinations(range(size), positive))
        excluded = 0
        for order in orders:
            labels = np.zeros(size, dtype=np.int64)
            labels[list(order)] = 1
            [fold] = evaluate(predictions(labels, np.arange(size) / size), FEWEST).folds
            excluded += not fold.auroc.low <= 0.5 <= fold.auroc.high

        assert excluded / len(orders) <= 0.05

    def test_a_large_fold_that_is_well_ordered_excludes_a_half(self) -> None:
        [fold] = evaluate(random_predictions(60, 0, shift=1.5, folds=1), QUICK).folds

        assert fold.auroc.low > 0.6

    def test_interval_by_hand(self) -> None:
        """Two against two, all pairs won. The bound t solves 1 - t - 1/8 = 1.96 * sqrt(V(t)) with Newcombe's

        V(t) = t (1 - t) (1 + (1 - t) / (2 - t) + t / (1 + t)) / 4, as (m + n) / 2 - 1 = 1.
        """
        [fold] = evaluate(predictions([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]), QUICK).folds
        bound = fold.auroc.low
        variance = bound * (1 - bound) * (1 + (1 - bound) / (2 - bound) + bound / (1 + bound)) / 4

        assert (fold.auroc.method, fold.auroc.high) == ("score", 1.0)
        assert 0.1 < bound < 0.5
        assert 1 - bound - 1 / 8 == pytest.approx(1.959964 * variance**0.5, abs=1e-6)

    def test_intervals_mirror(self) -> None:
        labels, scores = np.array([0, 0, 1, 0, 1, 1, 1]), np.arange(7) / 7
        [up] = evaluate(predictions(labels, scores), QUICK).folds
        [down] = evaluate(predictions(labels, 1 - scores), QUICK).folds

        assert (down.auroc.low, down.auroc.high) == pytest.approx((1 - up.auroc.high, 1 - up.auroc.low))

    def test_a_fold_of_one_class_has_no_auroc_but_a_reason(self) -> None:
        result = evaluate(predictions([0, 1, 0, 0], [0.1, 0.9, 0.2, 0.3], [0, 0, 1, 1]), QUICK)

        assert result.folds[1].auroc.value is None
        assert result.folds[1].auroc.low is None
        assert result.folds[1].auroc.reason == "no bag of class 1"
        assert result.auroc.value == 1.0

    def test_a_cohort_of_one_class_has_reasons_everywhere(self) -> None:
        result = evaluate(predictions([0, 0], [0.1, 0.2]), QUICK)

        assert (result.auroc.value, result.auroc.reason) == (None, "no bag of class 1")
        assert (result.balanced_accuracy.value, result.balanced_accuracy.reason) == (None, "no bag of class 1")

    def test_classes_that_never_meet_in_a_fold_have_a_reason(self) -> None:
        result = evaluate(predictions([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]), QUICK)

        assert (result.auroc.value, result.auroc.reason) == (None, "no fold has bags of a class and of another")
        assert result.balanced_accuracy.value == 1.0


def test_every_result_says_how_much_stands_behind_it() -> None:
    """Three patients, one of them with a bag of either class."""
    own = predictions([0, 1, 1, 0], [0.1, 0.9, 0.8, 0.3], patients=["a", "a", "b", "c"])
    result = evaluate(own, QUICK)
    comparison = compare(own, own, QUICK)

    for counts in (result.counts, result.folds[0].counts, comparison.counts):
        assert (counts.patients, counts.bags) == (3, 4)
        assert counts.bags_per_class == (2, 2)
        assert counts.patients_per_class == (2, 2)


class TestCompare:
    def test_a_head_and_itself_do_not_differ(self) -> None:
        own = random_predictions(60, 0)
        result = compare(own, own, QUICK)

        assert (result.difference.value, result.p) == (0.0, 1.0)
        assert result.difference.reason == "no interval: the difference is the same in all resamples"

    def test_the_difference_is_that_of_the_figures_and_changes_sign_with_the_order(self) -> None:
        good, poor = random_predictions(80, 0, shift=2.0), random_predictions(80, 1, shift=0.0)
        forth, back = compare(good, poor, QUICK), compare(poor, good, QUICK)
        expected = evaluate(good, QUICK).auroc.value - evaluate(poor, QUICK).auroc.value

        assert forth.difference.value == pytest.approx(expected)
        assert 0 < forth.difference.low < expected < forth.difference.high
        assert (back.difference.low, back.difference.high) == pytest.approx(
            (-forth.difference.high, -forth.difference.low)
        )
        assert forth.p == back.p == pytest.approx(2 / 501)

    def test_heads_that_know_nothing_seldom_differ(self) -> None:
        """40 pairs of heads on 60 patients: p below 0.05 in at most 6 (a binomial exceeds that in 0.3 % of cases)."""
        found = [
            compare(random_predictions(60, seed, 0.0), random_predictions(60, seed + 1000, 0.0), QUICK).p
            for seed in range(40)
        ]

        assert sum(p < 0.05 for p in found) <= 6

    def test_the_same_patients_are_drawn_for_both_heads(self) -> None:
        """Two heads that are nearly one: on shared patients the difference is much surer than either figure."""
        own = random_predictions(80, 0)
        noise = np.random.default_rng(5).normal(0, 0.01, 80)
        near = replace(own, probabilities=two_columns(own.probabilities[:, 1] + noise))
        alone, difference = evaluate(own, QUICK).auroc, compare(own, near, QUICK).difference

        assert difference.high - difference.low < (alone.high - alone.low) / 5

    def test_a_cohort_of_one_class_cannot_be_compared(self) -> None:
        own = predictions([0, 0], [0.1, 0.2])
        result = compare(own, own, QUICK)

        assert (result.difference.value, result.p, result.difference.reason) == (None, None, "no bag of class 1")

    def test_heads_that_judged_different_bags_are_not_compared(self) -> None:
        with pytest.raises(AssertionError, match="patients of the heads differ"):
            compare(predictions([0, 1], [0.1, 0.2]), predictions([0, 1], [0.1, 0.2], patients=["x", "y"]), QUICK)


def test_results_are_json_without_patients() -> None:
    own = random_predictions(30, 0)
    text = json.dumps([asdict(evaluate(own, QUICK)), asdict(compare(own, own, QUICK))], allow_nan=False)

    assert "p001" not in text


def test_three_classes_have_all_figures() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    probabilities = generator.dirichlet(np.ones(3), 60) * 0.7 + np.eye(3)[labels] * 0.3
    patients = np.array([f"p{number}" for number in range(60)])
    own = Predictions(labels, probabilities, probabilities.argmax(axis=1), patients, np.arange(60) // 15)
    result = evaluate(own, QUICK)
    folds = np.arange(60).reshape(4, 15)
    pooled = [roc_auc_score(labels[rows], probabilities[rows], multi_class="ovr") for rows in folds]

    assert [fold.auroc.value for fold in result.folds] == pytest.approx(pooled)
    assert result.auroc.value == pytest.approx(np.mean(pooled))  # folds of equal numbers of pairs
    assert result.auroc.low < result.auroc.value <= result.auroc.high
    assert result.folds[0].auroc.low < pooled[0] <= result.folds[0].auroc.high
