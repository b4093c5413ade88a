"""Bags keep what belongs together, and refuse what would train silently on rubbish."""

import numpy as np
import pytest
import torch

from pipeline.bags import Bag, feature_width, load_bag, pack
from pipeline.errors import StoreError


def bag(name: str, rows: list[list[float]], label: int | None = 0) -> Bag:
    return Bag(name, np.array(rows, dtype=np.float16), label, "p", ((f"{name}-image", len(rows)),))


def test_bags_are_packed_one_after_another() -> None:
    batch = pack([bag("a", [[1, 2], [3, 4]], 1), bag("b", [[5, 6]], 0), bag("c", [[7, 8]], None)])

    assert batch.instances.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert batch.lengths.tolist() == [2, 1, 1]
    assert batch.labels.tolist() == [1, 0, -1]
    assert [batch.instances.dtype, batch.lengths.dtype, batch.labels.dtype] == [torch.float32, torch.int64, torch.int64]


def test_packing_leaves_the_bags_alone() -> None:
    """A head that wrote into its batch must not change the next epoch, float32 embeddings included."""
    own = Bag("a", np.ones((2, 2), dtype=np.float32), 0, "p", (("i", 2),))
    pack([own]).instances.zero_()

    assert own.embeddings.tolist() == [[1, 1], [1, 1]]


def test_a_bag_is_the_embeddings_of_its_images_in_order() -> None:
    stores = {"one": np.array([[1.0], [2.0]], dtype=np.float16), "two": np.array([[3.0]], dtype=np.float16)}
    made = load_bag("a", 1, "p", ["two", "one"], stores.__getitem__)

    assert made.embeddings.tolist() == [[3], [1], [2]]
    assert made.embeddings.dtype == np.float16
    assert made.images == (("two", 1), ("one", 2))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_broken_embeddings_are_refused_naming_the_bag(value: float) -> None:
    with pytest.raises(StoreError, match=r"^bag case-7: 1 of 3 embeddings hold NaN or infinity: .*$"):
        bag("case-7", [[1, 2], [value, value], [3, 4]])


def test_an_empty_bag_is_refused_naming_it() -> None:
    with pytest.raises(StoreError, match=r"^bag case-7: has no instances: .*$"):
        Bag("case-7", np.zeros((0, 4), dtype=np.float16), 0, "p", ())


def test_bags_of_different_widths_are_refused_naming_the_bag() -> None:
    with pytest.raises(StoreError, match=r"^bag b: embeddings have 3 features, those of bag a have 2: .*$"):
        pack([bag("a", [[1, 2]]), bag("b", [[1, 2, 3]])])

    assert feature_width([bag("a", [[1, 2]]), bag("b", [[3, 4]])]) == 2


def test_images_of_different_widths_are_refused_naming_the_bag() -> None:
    stores = {"one": np.ones((2, 4), dtype=np.float16), "two": np.ones((2, 3), dtype=np.float16)}

    with pytest.raises(StoreError, match=r"^bag a: its images have embeddings of widths \[3, 4\]: .*$"):
        load_bag("a", 1, "p", ["one", "two"], stores.__getitem__)


def test_messages_name_no_patient() -> None:
    with pytest.raises(StoreError) as caught:
        Bag("b", np.full((1, 2), np.nan, dtype=np.float32), 0, "Surname", (("i", 1),))

    assert "Surname" not in str(caught.value)
