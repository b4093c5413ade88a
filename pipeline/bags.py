"""Bags: the unit that learns and is judged. Nothing here knows whether its instances were tiles or slices."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import StoreError

UNLABELLED = -1
"""Stands for `label=None` in a batch; no loss takes it."""

Embeddings = NDArray[np.float16] | NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Bag:
    """All embeddings of one image, case or patient, with its label.

    Raises:
        StoreError: there are no embeddings, or some are not finite numbers.
    """

    name: str
    embeddings: Embeddings
    """(instance, feature), image after image."""
    label: int | None
    patient: str
    images: tuple[tuple[str, int], ...]
    """(image id, number of its instances), in the order of `embeddings`: leads from an instance back to its image."""

    def __post_init__(self) -> None:
        """Refuse what would train silently on rubbish. Cost: reads the embeddings once."""
        assert self.embeddings.ndim == 2, f"embeddings are (instance, feature), not {self.embeddings.shape}"
        assert sum(count for _, count in self.images) == len(self.embeddings), "counts of images and instances differ"
        if len(self.embeddings) == 0:
            raise StoreError(f"bag {self.name}: has no instances: take it out of the labels, or embed its images again")
        broken = len(self.embeddings) - int(np.isfinite(self.embeddings).all(axis=1).sum())
        if broken:
            raise StoreError(
                f"bag {self.name}: {broken} of {len(self.embeddings)} embeddings hold NaN or infinity: "
                "embed its images again, and check the backbone's weights"
            )


@dataclass(frozen=True, eq=False)
class Batch:
    """Bags packed for a head: all instances one after another, never padded."""

    instances: Tensor
    """(instance, feature) float32."""
    lengths: Tensor
    """(bag,) int64, instances of each bag."""
    labels: Tensor
    """(bag,) int64; UNLABELLED where a bag has none."""


def load_bag(
    name: str, label: int | None, patient: str, images: Sequence[str], load: Callable[[str], Embeddings]
) -> Bag:
    """One bag from the embeddings of its images, in the order given.

    Args:
        name: how the bag is called in results.
        label: its class, or None.
        patient: whom it comes from; patients are what splits and intervals count.
        images: ids of its images, at least one.
        load: gives the embeddings (instance, feature) of an image id.

    Raises:
        StoreError: the images differ in the width of their embeddings, or `Bag` refuses them.
    """
    parts = [load(image) for image in images]
    widths = sorted({part.shape[1] for part in parts})
    if len(widths) > 1:
        raise StoreError(f"bag {name}: its images have embeddings of widths {widths}: embed them with one backbone")
    counts = tuple((image, len(part)) for image, part in zip(images, parts, strict=True))
    embeddings: Embeddings = np.concatenate(parts, dtype=np.result_type(*parts))
    return Bag(name, embeddings, label, patient, counts)


def feature_width(bags: Sequence[Bag]) -> int:
    """The width that the embeddings of all bags share.

    Raises:
        StoreError: naming the first bag that differs from the first one.
    """
    features = int(bags[0].embeddings.shape[1])
    for bag in bags:
        if bag.embeddings.shape[1] != features:
            raise StoreError(
                f"bag {bag.name}: embeddings have {bag.embeddings.shape[1]} features, those of bag {bags[0].name} "
                f"have {features}: embed all images with one backbone"
            )
    return features


def pack(bags: Sequence[Bag]) -> Batch:
    """Pack bags, at least one, into a batch, in their order.

    Raises:
        StoreError: bags differ in the width of their embeddings.
    """
    feature_width(bags)
    return Batch(
        instances=torch.from_numpy(np.concatenate([bag.embeddings.astype(np.float32) for bag in bags])),
        lengths=torch.tensor([len(bag.embeddings) for bag in bags], dtype=torch.int64),
        labels=torch.tensor([UNLABELLED if bag.label is None else bag.label for bag in bags], dtype=torch.int64),
    )
