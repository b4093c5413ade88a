"""Which patient is in which fold. Patients are divided, never images, and known patients stay where they are."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

from pipeline.config import SplitSettings
from pipeline.errors import CohortError

Role = Literal["train", "validation", "test"]


def assign_folds(
    patients: Sequence[str], labels: Sequence[int], settings: SplitSettings, known: Mapping[str, int]
) -> dict[str, int]:
    """The fold of every patient, sorted by patient; the same for every order of the bags.

    New patients are dealt class by class, in an order drawn from the seed and their names, each to the fold with the
    fewest patients of its class (then the fewest bags, then by hash). When nobody was known, the folds' numbers of
    patients of a class therefore differ by at most one. When somebody was, new patients even the folds out as far as
    they reach.

    Args:
        patients: the patient of each bag.
        labels: the class of each bag.
        settings: number of folds and seed.
        known: folds of patients from earlier runs; they are kept. Patients without a bag today are left out and do
            not count towards balance; keeping their fold for when they return is the caller's.

    Raises:
        CohortError: a class has fewer patients than there are folds, or a known fold does not exist.
    """
    classes_of = _classes_of(patients, labels)
    _check(classes_of, settings, known)
    class_of = _dealt_as(classes_of, labels)
    bags_of = Counter(patients)
    fold_of = {patient: known[patient] for patient in class_of if patient in known}
    seats = Counter((fold, class_of[patient]) for patient, fold in fold_of.items())  # patients by fold and class
    bags = Counter[int]()
    for patient, fold in fold_of.items():
        bags[fold] += bags_of[patient]

    new = [patient for patient in class_of if patient not in fold_of]
    for patient in sorted(new, key=lambda name: (class_of[name], _draw(settings.seed, name))):
        label = class_of[patient]
        ranked = [
            (seats[fold, label], bags[fold], _draw(settings.seed, f"{fold}/{patient}"), fold)
            for fold in range(settings.folds)
        ]
        fold = min(ranked)[-1]
        fold_of[patient] = fold
        seats[fold, label] += 1
        bags[fold] += bags_of[patient]
    return dict(sorted(fold_of.items()))


def roles(fold_of: Mapping[str, int], fold: int, folds: int) -> dict[str, Role]:
    """What each patient is for when one fold is held out: it tests, the next one validates, the rest train."""
    special: dict[int, Role] = {fold: "test", (fold + 1) % folds: "validation"}
    return {patient: special.get(own, "train") for patient, own in fold_of.items()}


def _classes_of(patients: Sequence[str], labels: Sequence[int]) -> dict[str, set[int]]:
    """The classes of each patient's bags."""
    classes: dict[str, set[int]] = defaultdict(set)
    for patient, label in zip(patients, labels, strict=True):
        classes[patient].add(label)
    return dict(classes)


def _dealt_as(classes_of: Mapping[str, set[int]], labels: Sequence[int]) -> dict[str, int]:
    """The one class each patient counts as: its class with the fewest bags in the cohort, or the highest of these.

    ASSUME: what is rare is what a fold must not lack; a patient with one tumour slide among ten counts as tumour.
    """
    size = Counter(labels)
    return {patient: min(classes, key=lambda label: (size[label], -label)) for patient, classes in classes_of.items()}


def _check(classes_of: Mapping[str, set[int]], settings: SplitSettings, known: Mapping[str, int]) -> None:
    """Refuse folds that cannot each have a patient of every class, and known folds that do not exist."""
    count = Counter(label for classes in classes_of.values() for label in classes)
    few = {label: count[label] for label in sorted(count) if count[label] < settings.folds}
    if few:
        found = ", ".join(f"class {label} has {number}" for label, number in few.items())
        raise CohortError(
            f"labels: {found} patients while split.folds is {settings.folds}: "
            "label more patients of it, leave the class out, or lower split.folds"
        )
    strays = {fold for patient, fold in known.items() if patient in classes_of and not 0 <= fold < settings.folds}
    if strays:
        raise CohortError(
            f"split.folds: is {settings.folds} while patients are known to be in folds {sorted(strays)}: "
            "set it back, or start a new split"
        )


def _draw(seed: int, name: str) -> str:
    """A random-looking text, the same on every machine for the same seed and name."""
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()
