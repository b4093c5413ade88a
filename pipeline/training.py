"""Fit a head on training bags, stop on validation bags, ask it about others. `fit` is never given test bags."""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.bags import Bag, pack
from pipeline.config import HeadSettings, TrainingSettings
from pipeline.errors import CohortError, ConfigError
from pipeline.heads import Head, build_head


@dataclass(frozen=True)
class Epoch:
    """Mean loss per bag, over one pass. The training loss is taken with dropout on, while weights move."""

    train_loss: float
    validation_loss: float


@dataclass(frozen=True, eq=False)
class Fitted:
    """What came out of `fit`."""

    state: dict[str, Tensor]
    """The head's weights after the best epoch: contiguous copies on the CPU."""
    history: tuple[Epoch, ...]
    best_epoch: int
    """Index into `history` of the lowest validation loss, counted from 0."""
    threshold: float | None
    """Two classes: class 1 is decided when its probability is at least this. More classes: None, the likeliest wins."""


def new_head(settings: HeadSettings, features: int, classes: int, seed: int) -> Head:
    """A head whose initial weights depend on its settings, widths and the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_stream("initialisation", seed))
        return build_head(settings, features, classes)


def fit(
    head: Head, train: Sequence[Bag], validation: Sequence[Bag], settings: TrainingSettings, classes: int, seed: int
) -> Fitted:
    """Train a head with AdamW until the validation loss stops falling; the head ends with the best epoch's weights.

    The same bags in the same order, settings and seed, and the same initial weights give the same bits, as long as
    torch's number of threads is the same; setting that is the caller's.

    Args:
        head: a head, as `new_head` gives it; changed in place.
        train: bags to learn from. Class weights are counted here and nowhere else.
        validation: bags that choose the epoch and the threshold.
        settings: the training section of the config.
        classes: number of classes.
        seed: of shuffling and dropout.

    Raises:
        CohortError: there is nothing to train or validate on, or a class is missing from training.
        ConfigError: the loss is no longer a finite number.
    """
    _check_labels(train, validation, classes)
    weights = class_weights([bag.label for bag in train], classes) if settings.class_weights else None
    optimizer = torch.optim.AdamW(head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    shuffle = torch.Generator().manual_seed(_stream("shuffle", seed))
    history: list[Epoch] = []
    best_epoch, state = 0, _state(head)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_stream("dropout", seed))  # dropout draws from the global generator
        for number in range(settings.epochs):
            head.train()
            total = 0.0
            order = torch.randperm(len(train), generator=shuffle).tolist()
            for start in range(0, len(order), settings.bags_per_step):
                batch = pack([train[index] for index in order[start : start + settings.bags_per_step]])
                loss = head.loss(head(batch.instances, batch.lengths), batch.labels, weights)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(head.parameters(), settings.gradient_clip)
                optimizer.step()
                head.after_step()
                total += loss.item() * len(batch.lengths)
            epoch = Epoch(total / len(train), validation_loss(head, validation, weights, settings.bags_per_step))
            if not math.isfinite(epoch.train_loss + epoch.validation_loss):
                raise ConfigError(f"training.learning_rate: the loss is not finite in epoch {number}: lower it")
            history.append(epoch)
            if number == 0 or epoch.validation_loss < history[best_epoch].validation_loss:
                best_epoch, state = number, _state(head)
            if number - best_epoch >= settings.patience:
                break

    head.load_state_dict(state)
    threshold = None
    if classes == 2:
        probabilities, _ = predict(head, validation)
        threshold = choose_threshold(np.array([bag.label for bag in validation]), probabilities[:, 1])
    return Fitted(state, tuple(history), best_epoch, threshold)


@torch.no_grad()
def validation_loss(head: Head, bags: Sequence[Bag], weights: Tensor | None, bags_per_step: int) -> float:
    """Mean loss per bag with dropout and gradients off; weighed by class, and packed, as in training."""
    head.eval()
    total = 0.0
    for start in range(0, len(bags), bags_per_step):
        batch = pack(bags[start : start + bags_per_step])
        loss = head.loss(head(batch.instances, batch.lengths), batch.labels, weights)
        total += loss.item() * len(batch.lengths)
    return total / len(bags)


@torch.no_grad()
def predict(head: Head, bags: Sequence[Bag]) -> tuple[NDArray[np.float64], list[NDArray[np.float32]]]:
    """Probabilities (bag, class), and the attention (instance,) of each bag, with dropout and gradients off.

    Bags are judged one at a time, so that no digit depends on which others were asked about. Labels are not read.
    """
    head.eval()
    logits, attention = [], []
    for bag in bags:
        batch = pack([bag])
        output = head(batch.instances, batch.lengths)
        logits.append(output.logits.double())
        attention.append(output.attention.float().numpy())
    probabilities: NDArray[np.float64] = torch.softmax(torch.cat(logits), dim=1).numpy()
    return probabilities, attention


def class_weights(labels: Sequence[int | None], classes: int) -> Tensor:
    """The inverse of each class's share of bags, (class,) float32, scaled so that the mean over the bags is one."""
    count = Counter(labels)
    return torch.tensor([len(labels) / (classes * count[label]) for label in range(classes)], dtype=torch.float32)


def choose_threshold(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """The probability of class 1 from which on it is decided: highest balanced accuracy on these bags.

    Candidates are the midpoints between neighbouring distinct probabilities; among equally good ones the closest to
    0.5 wins (then the lower one). With one class only, or one probability only, there is nothing to choose: 0.5.

    Args:
        labels: (bag,) 0 or 1.
        probabilities: (bag,) of class 1.
    """
    positive, negative = np.sort(probabilities[labels == 1]), np.sort(probabilities[labels == 0])
    distinct = np.unique(probabilities)
    if not len(positive) or not len(negative) or len(distinct) < 2:
        return 0.5
    candidates = (distinct[:-1] + distinct[1:]) / 2
    sensitivity = 1 - np.searchsorted(positive, candidates) / len(positive)
    specificity = np.searchsorted(negative, candidates) / len(negative)
    accuracy = (sensitivity + specificity) / 2
    best = candidates[accuracy >= accuracy.max() - 1e-12]  # equal up to rounding
    return float(best[np.argmin(np.abs(best - 0.5))])


def _check_labels(train: Sequence[Bag], validation: Sequence[Bag], classes: int) -> None:
    """Refuse folds that cannot be learnt from."""
    assert all(bag.label is not None and 0 <= bag.label < classes for bag in (*train, *validation)), (
        "label out of range"
    )
    if not validation:
        raise CohortError("split: the validation fold has no bags: label more patients, or lower split.folds")
    missing = sorted(set(range(classes)) - {bag.label for bag in train})
    if missing:
        raise CohortError(
            f"split: no training bag of class {', '.join(map(str, missing))} among {len(train)}: "
            "label more patients of it, leave the class out, or change split.seed for a new split"
        )


def _state(head: Head) -> dict[str, Tensor]:
    """A copy of a head's weights that later steps leave alone."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in head.state_dict().items()}


def _stream(name: str, seed: int) -> int:
    """The seed of one named purpose, so that no two purposes share a generator and none depends on call order."""
    return int.from_bytes(hashlib.sha256(f"{name}/{seed}".encode()).digest()[:7], "big")
