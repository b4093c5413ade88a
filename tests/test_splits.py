"""No patient is on two sides, classes are spread evenly, and nobody who is known moves."""

import random
from collections import Counter

import pytest

from pipeline.config import SplitSettings
from pipeline.errors import CohortError
from pipeline.splits import assign_folds, roles

FIVE = SplitSettings(folds=5, seed=0)


def cohort(zeros: int, ones: int, prefix: str = "p") -> tuple[list[str], list[int]]:
    """One bag per patient."""
    return [f"{prefix}{number}" for number in range(zeros + ones)], [0] * zeros + [1] * ones


def per_fold(fold_of: dict[str, int], patients: list[str], labels: list[int], label: int) -> list[int]:
    """Patients of a class in each of five folds."""
    count = Counter(fold_of[patient] for patient, own in set(zip(patients, labels, strict=True)) if own == label)
    return sorted(count[fold] for fold in range(5))


@pytest.mark.parametrize("seed", range(5))
def test_classes_are_spread_evenly(seed: int) -> None:
    """23 and 12 patients over five folds: no two folds differ by more than one."""
    patients, labels = cohort(23, 12)
    fold_of = assign_folds(patients, labels, SplitSettings(folds=5, seed=seed), {})

    assert per_fold(fold_of, patients, labels, 0) == [4, 4, 5, 5, 5]
    assert per_fold(fold_of, patients, labels, 1) == [2, 2, 2, 3, 3]
    assert sorted(Counter(fold_of.values()).values()) == [7, 7, 7, 7, 7]


def test_the_order_of_bags_changes_nothing() -> None:
    patients, labels = cohort(23, 12)
    patients, labels = patients + patients[:9], labels + [1] * 9
    rows = list(zip(patients, labels, strict=True))
    random.Random(0).shuffle(rows)
    shuffled = assign_folds([row[0] for row in rows], [row[1] for row in rows], FIVE, {})

    assert list(shuffled.items()) == list(assign_folds(patients, labels, FIVE, {}).items())


def test_the_seed_and_the_names_decide() -> None:
    patients, labels = cohort(20, 20)
    fold_of = assign_folds(patients, labels, FIVE, {})

    assert assign_folds(patients, labels, FIVE, {}) == fold_of
    assert assign_folds(patients, labels, SplitSettings(folds=5, seed=1), {}) != fold_of


def test_known_patients_keep_their_fold_when_the_cohort_grows() -> None:
    patients, labels = cohort(10, 10)
    before = assign_folds(patients, labels, FIVE, {})
    more, more_labels = cohort(5, 5, "new")
    after = assign_folds(patients + more, labels + more_labels, FIVE, before)

    assert {patient: after[patient] for patient in patients} == before
    assert per_fold(after, patients + more, labels + more_labels, 1) == [3, 3, 3, 3, 3]


def test_new_patients_even_out_what_was_known() -> None:
    """Four known patients of class 1 sit in fold 2: the eight new ones all go elsewhere."""
    patients, labels = cohort(5, 12)
    known = dict.fromkeys(["p5", "p6", "p7", "p8"], 2)
    fold_of = assign_folds(patients, labels, FIVE, known)

    assert Counter(fold_of[f"p{number}"] for number in range(5, 17)) == {0: 2, 1: 2, 2: 4, 3: 2, 4: 2}


def test_known_patients_without_a_bag_are_left_out() -> None:
    patients, labels = cohort(5, 5)

    assert "gone" not in assign_folds(patients, labels, FIVE, {"gone": 3})


def test_all_bags_of_a_patient_share_a_fold() -> None:
    """Three patients have a bag of either class; they count as the rarer class 1, which each fold then has once."""
    patients = [f"p{number}" for number in range(12)] + ["p0", "p1", "p2"]
    labels = [0] * 10 + [1] * 2 + [1] * 3
    fold_of = assign_folds(patients, labels, FIVE, {})

    assert len(fold_of) == 12
    assert sorted(fold_of[patient] for patient in ("p0", "p1", "p2", "p10", "p11")) == [0, 1, 2, 3, 4]


def test_roles_rotate() -> None:
    fold_of = {"a": 0, "b": 1, "c": 2, "d": 3}

    assert roles(fold_of, 1, 4) == {"a": "train", "b": "test", "c": "validation", "d": "train"}
    assert roles(fold_of, 3, 4) == {"a": "validation", "b": "train", "c": "train", "d": "test"}


def test_every_patient_is_tested_once_and_validates_once() -> None:
    patients, labels = cohort(15, 10)
    fold_of = assign_folds(patients, labels, FIVE, {})
    parts = [roles(fold_of, fold, 5) for fold in range(5)]

    for patient in patients:
        assert sorted(part[patient] for part in parts) == ["test", "train", "train", "train", "validation"]


def test_a_class_with_fewer_patients_than_folds_is_refused_in_one_line() -> None:
    """Ten bags of four patients are four patients."""
    patients, labels = cohort(20, 4)
    with pytest.raises(CohortError) as caught:
        assign_folds(patients + ["p20"] * 6, labels + [1] * 6, FIVE, {})

    assert str(caught.value) == (
        "labels: class 1 has 4 patients while split.folds is 5: "
        "label more patients of it, leave the class out, or lower split.folds"
    )


def test_a_known_fold_that_does_not_exist_is_refused_naming_no_patient() -> None:
    patients, labels = cohort(10, 10)
    with pytest.raises(
        CohortError, match=r"^split\.folds: is 5 while patients are known to be in folds \[7\]: "
    ) as caught:
        assign_folds(patients, labels, FIVE, {"p3": 7})

    assert "p3" not in str(caught.value)
