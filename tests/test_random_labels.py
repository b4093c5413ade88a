"""Where there is nothing to learn, nothing may be found: the whole path from folds to intervals on permuted labels."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch

from pipeline.bags import Bag
from pipeline.config import EvaluationSettings, HeadSettings, SplitSettings, TrainingSettings
from pipeline.evaluation import FoldResult, Predictions, evaluate
from pipeline.heads import Head
from pipeline.splits import assign_folds, roles
from pipeline.training import Fitted, fit, new_head, predict

PATIENTS, FEATURES, FOLDS, PERMUTATIONS = 60, 12, 5, 20
HEAD = HeadSettings(method="abmil", hidden=8, dropout=0.1)
TRAINING = TrainingSettings(epochs=12, patience=4, bags_per_step=30, learning_rate=0.03)
EVALUATION = EvaluationSettings(resamples=100)

Train = Callable[[Sequence[Bag], Sequence[Bag], Sequence[Bag], int], tuple[Head, Fitted]]


def honest(train: Sequence[Bag], validation: Sequence[Bag], test: Sequence[Bag], seed: int) -> tuple[Head, Fitted]:
    """The loop as it is used: the test bags are not touched."""
    head = new_head(HEAD, FEATURES, 2, seed)
    return head, fit(head, train, validation, TRAINING, 2, seed)


def leaking(train: Sequence[Bag], validation: Sequence[Bag], test: Sequence[Bag], seed: int) -> tuple[Head, Fitted]:
    """A loop with the classical mistakes: test bags among the training bags, and the epoch chosen on the test fold.

    The second mistake alone is too small for this check (2 of 20 intervals, mean 0.54): what guards against it is that
    `fit` is never given test bags.
    """
    head = new_head(HEAD, FEATURES, 2, seed)
    return head, fit(head, [*train, *validation, *test], test, TRAINING, 2, seed)


def permuted_cohort(seed: int) -> list[Bag]:
    """60 patients with one or two bags of four normal instances; 30 patients, drawn by the seed, are of class 1.

    The embeddings are the same for every seed. Each patient has a place of its own, so a leak between its bags shows.
    """
    labels = np.random.default_rng(seed).permutation(np.arange(PATIENTS) % 2)
    generator = np.random.default_rng(1234)
    bags = []
    for patient in range(PATIENTS):
        place = generator.normal(0, 1, FEATURES)
        for number in range(1 + patient % 2):
            rows = (place + generator.normal(0, 0.5, (4, FEATURES))).astype(np.float32)
            name = f"bag{patient}-{number}"
            bags.append(Bag(name, rows, int(labels[patient]), f"patient{patient}", ((name, 4),)))
    return bags


def fold_results(seed: int, train_head: Train) -> tuple[FoldResult, ...]:
    """Split, train and test all folds of one permutation."""
    bags = permuted_cohort(seed)
    fold_of = assign_folds(
        [b.patient for b in bags], [b.label for b in bags], SplitSettings(folds=FOLDS, seed=seed), {}
    )
    tested: list[Bag] = []
    probabilities, decided = [], []
    for fold in range(FOLDS):
        role = roles(fold_of, fold, FOLDS)
        train, validation, test = (
            [bag for bag in bags if role[bag.patient] == part] for part in ("train", "validation", "test")
        )
        head, fitted = train_head(train, validation, test, seed)
        said, _ = predict(head, test)
        tested += test
        probabilities.append(said)
        decided.append((said[:, 1] >= fitted.threshold).astype(np.int64))
    predictions = Predictions(
        labels=np.array([bag.label for bag in tested]),
        probabilities=np.concatenate(probabilities),
        decided=np.concatenate(decided),
        patients=np.array([bag.patient for bag in tested]),
        folds=np.array([fold_of[bag.patient] for bag in tested]),
    )
    return evaluate(predictions, EVALUATION).folds


def check_nothing_is_found(train_head: Train) -> None:
    """Fail when random labels seem to be predictable.

    Counts one 95 % interval per permutation, that of fold `seed % 5`: intervals of folds of one permutation share bags
    and are not independent. Were each to miss 0.5 with probability 0.05, five or more of 20 would in 0.3 % of cases.
    The mean is over all folds of all permutations.
    """
    results = [fold_results(seed, train_head) for seed in range(PERMUTATIONS)]
    chosen = [folds[seed % FOLDS].auroc for seed, folds in enumerate(results)]
    excluded = sum(not estimate.low <= 0.5 <= estimate.high for estimate in chosen)
    mean = np.mean([fold.auroc.value for folds in results for fold in folds])

    assert excluded <= 4, f"{excluded} of {PERMUTATIONS} intervals exclude 0.5"
    assert abs(mean - 0.5) <= 0.05, f"mean AUROC {mean:.3f}"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny matrices are slower on two threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_random_labels_are_not_predictable() -> None:
    """Of 20 permutations at most 4 intervals exclude 0.5, and the mean AUROC lies within 0.05 of it."""
    check_nothing_is_found(honest)


def test_a_leaking_loop_is_caught() -> None:
    """The same check fails, on the intervals, when the test bags take part in training and in choosing the epoch."""
    with pytest.raises(AssertionError, match=r"^\d+ of 20 intervals exclude 0\.5"):
        check_nothing_is_found(leaking)
