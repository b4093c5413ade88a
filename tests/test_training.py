"""The loop learns, stops on validation, and gives the same bits for the same seed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline import training
from pipeline.bags import Bag
from pipeline.config import HeadSettings, TrainingSettings
from pipeline.errors import CohortError, ConfigError
from pipeline.heads import Head, HeadOutput
from pipeline.training import Fitted, choose_threshold, class_weights, fit, new_head, predict

FEATURES = 4
FAST = TrainingSettings(epochs=30, patience=30, bags_per_step=4, learning_rate=0.02)
ABMIL = HeadSettings(method="abmil", hidden=8, dropout=0.5)


def some_bags(number: int, shift: float, start: int = 0) -> list[Bag]:
    """Bags of 3 to 5 normal instances, every second of class 1, whose instances are moved by `shift`."""
    made = []
    for index in range(start, start + number):
        rows = np.random.default_rng(index).normal(shift * (index % 2), 1, (3 + index % 3, FEATURES)).astype(np.float32)
        made.append(Bag(f"bag{index}", rows, index % 2, f"patient{index}", ((f"image{index}", len(rows)),)))
    return made


def fitted(seed: int = 0, settings: TrainingSettings = FAST, shift: float = 2.0) -> tuple[Head, Fitted]:
    head = new_head(ABMIL, FEATURES, 2, seed)
    return head, fit(head, some_bags(16, shift), some_bags(8, shift, 100), settings, 2, seed)


def test_what_can_be_learnt_is_learnt() -> None:
    head, result = fitted()
    probabilities, _ = predict(head, some_bags(20, 2.0, 200))

    assert ((probabilities[:, 1] >= result.threshold) == np.arange(20) % 2).mean() >= 0.9
    assert result.history[-1].train_loss < result.history[0].train_loss / 2


def test_the_same_seed_gives_the_same_bits_whatever_ran_before() -> None:
    _, first = fitted(seed=3)
    torch.rand(7)
    _, second = fitted(seed=3)

    assert first.history == second.history
    assert all(torch.equal(first.state[name], second.state[name]) for name in first.state)


def test_another_seed_gives_other_weights() -> None:
    _, first = fitted(seed=3)
    _, second = fitted(seed=4)

    assert not torch.equal(first.state["classifier.weight"], second.state["classifier.weight"])


def test_the_callers_random_numbers_are_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fitted()

    assert torch.equal(torch.rand(3), expected)


def test_state_is_plain_and_the_head_ends_with_it() -> None:
    head, result = fitted()

    for name, value in head.state_dict().items():
        kept = result.state[name]
        assert type(kept) is Tensor and kept.is_contiguous() and not kept.requires_grad and kept.device.type == "cpu"
        assert torch.equal(kept, value)


class Scripted(Head):
    """A head whose validation loss is written down: one bag, and losses by epoch."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.losses = losses
        self.epoch = torch.nn.Buffer(torch.zeros((), dtype=torch.int64))
        self.bias = torch.nn.Parameter(torch.zeros(2))
        self.steps = 0

    def forward(self, instances: Tensor, lengths: Tensor, graph: Tensor | None = None) -> HeadOutput:
        return HeadOutput(self.bias.expand(len(lengths), 2), torch.ones(len(instances)))

    def loss(self, output: HeadOutput, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
        return output.logits.sum() if self.training else torch.tensor(self.losses[int(self.epoch) - 1])

    def after_step(self) -> None:
        self.steps += 1
        self.epoch += 1


def scripted(losses: list[float], **settings: float) -> tuple[Scripted, Fitted]:
    """Two training bags in one step: one step is one epoch."""
    head = Scripted(losses)
    given = TrainingSettings(epochs=6, patience=2, bags_per_step=2).model_copy(update=settings)
    return head, fit(head, some_bags(2, 0), some_bags(1, 0, 100), given, 2, 0)


def test_training_stops_when_patience_ends_and_keeps_the_best_epoch() -> None:
    head, result = scripted([5.0, 3.0, 4.0, 3.0, 1.0, 0.0])

    assert [epoch.validation_loss for epoch in result.history] == [5.0, 3.0, 4.0, 3.0]
    assert result.best_epoch == 1
    assert int(result.state["epoch"]) == 2
    assert head.steps == 4


def test_after_step_is_called_after_each_step() -> None:
    head, _ = scripted([float(10 - number) for number in range(6)])

    assert head.steps == 6


def test_gradients_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The norm that the optimiser sees never exceeds the setting, although the loss is a thousandfold."""
    seen = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW) -> None:
        parameters = [p for group in self.param_groups for p in group["params"]]
        seen.append(float(torch.cat([p.grad.flatten() for p in parameters]).norm()))
        step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    monkeypatch.setattr(Head, "loss", lambda self, output, labels, weights=None: 1000 * output.logits.square().mean())
    fitted(settings=FAST.model_copy(update={"epochs": 2, "gradient_clip": 0.5}))

    assert len(seen) == 8
    assert max(seen) == pytest.approx(0.5, abs=1e-4)


def test_validation_and_prediction_run_without_dropout_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    forward = training.build_head(ABMIL, FEATURES, 2).__class__.forward

    def watched(self: Head, instances: Tensor, lengths: Tensor, graph: Tensor | None = None) -> HeadOutput:
        modes.append((len(lengths), self.training, torch.is_grad_enabled()))
        return forward(self, instances, lengths, graph)

    monkeypatch.setattr("pipeline.heads.abmil.AttentionHead.forward", watched)
    fitted(settings=FAST.model_copy(update={"epochs": 2}))

    # per epoch 16 training and 8 validation bags in steps of 4; at the end the 8 again, one by one, for the threshold
    epoch = [(4, True, True)] * 4 + [(4, False, False)] * 2
    assert modes == epoch * 2 + [(1, False, False)] * 8


def test_validation_loss_is_the_loss_without_dropout() -> None:
    """Recomputed from probabilities that `predict` gives, with weights of one (both classes are equally many)."""
    head, result = fitted()
    validation = some_bags(8, 2.0, 100)
    probabilities, _ = predict(head, validation)
    expected = np.mean([-np.log(row[bag.label]) for row, bag in zip(probabilities, validation, strict=True)])

    assert result.history[result.best_epoch].validation_loss == pytest.approx(expected, rel=1e-5)


def test_prediction_does_not_depend_on_the_other_bags() -> None:
    head, _ = fitted()
    bags = some_bags(6, 2.0, 300)
    together, attention = predict(head, bags)
    alone, attention_alone = predict(head, [bags[3]])

    assert together.dtype == np.float64 and together.shape == (6, 2)
    assert together.sum(axis=1) == pytest.approx(np.ones(6), abs=1e-12)
    assert np.array_equal(together[3], alone[0])
    assert [len(weights) for weights in attention] == [3, 4, 5, 3, 4, 5]
    assert np.array_equal(attention[3], attention_alone[0])


def test_prediction_reads_no_labels() -> None:
    head, _ = fitted()
    bags = some_bags(4, 2.0, 300)
    unlabelled = [replace(bag, label=None) for bag in bags]

    assert np.array_equal(predict(head, unlabelled)[0], predict(head, bags)[0])


def test_class_weights_come_from_the_training_bags() -> None:
    """Three of class 0, one of class 1: 4 / (2 * 3) and 4 / (2 * 1)."""
    assert class_weights([0, 0, 1, 0], 2).tolist() == pytest.approx([2 / 3, 2])


def test_class_weights_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(
        Head, "loss", lambda self, output, labels, weights=None: given.append(weights) or output.logits.square().mean()
    )
    head = new_head(ABMIL, FEATURES, 2, 0)
    train = some_bags(4, 0) + some_bags(4, 0)[::2]
    fit(head, train, some_bags(3, 0, 100), FAST.model_copy(update={"epochs": 1, "class_weights": False}), 2, 0)
    assert given and all(weights is None for weights in given)

    given.clear()
    fit(head, train, some_bags(3, 0, 100), FAST.model_copy(update={"epochs": 1}), 2, 0)
    assert all(weights.tolist() == [0.75, 1.5] for weights in given)


def test_three_classes_have_no_threshold() -> None:
    bags = [replace(bag, label=index % 3) for index, bag in enumerate(some_bags(9, 1.0))]
    head = new_head(ABMIL, FEATURES, 3, 0)

    assert fit(head, bags, bags[:3], FAST.model_copy(update={"epochs": 1}), 3, 0).threshold is None


@pytest.mark.parametrize(
    ("labels", "probabilities", "expected"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.4, 0.9], 0.3),  # the only split without an error
        ([0, 1, 0, 1], [0.125, 0.25, 0.75, 0.875], 0.1875),  # 0.8125 is as good and as far from 0.5: the lower
        ([0, 1, 0, 1], [0.2, 0.5, 0.7, 0.9], 0.35),  # 0.35 and 0.8 are both 3/4 right: 0.35 is closer
        ([0, 0, 0, 1], [0.6, 0.7, 0.8, 0.9], 0.85),
        ([0, 0], [0.1, 0.2], 0.5),  # one class: nothing to choose
        ([0, 1], [0.7, 0.7], 0.5),  # one probability: nothing to choose
    ],
)
def test_threshold_has_the_best_balanced_accuracy_and_ties_go_towards_a_half(
    labels: list[int], probabilities: list[float], expected: float
) -> None:
    assert choose_threshold(np.array(labels), np.array(probabilities)) == pytest.approx(expected)


def test_a_class_missing_from_training_is_refused() -> None:
    bags = some_bags(8, 0.0)
    with pytest.raises(CohortError, match=r"^split: no training bag of class 1 among 4: "):
        fit(new_head(ABMIL, FEATURES, 2, 0), bags[::2], bags, FAST, 2, 0)


def test_an_empty_validation_fold_is_refused() -> None:
    with pytest.raises(CohortError, match=r"^split: the validation fold has no bags: "):
        fit(new_head(ABMIL, FEATURES, 2, 0), some_bags(8, 0.0), [], FAST, 2, 0)


def test_a_loss_that_runs_away_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^training\.learning_rate: the loss is not finite in epoch 1: "):
        scripted([1.0, float("nan")])


def test_initial_weights_depend_on_the_seed_alone() -> None:
    first = new_head(ABMIL, FEATURES, 2, 7).state_dict()
    torch.rand(3)
    second, other = new_head(ABMIL, FEATURES, 2, 7).state_dict(), new_head(ABMIL, FEATURES, 2, 8).state_dict()

    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["embed.weight"], other["embed.weight"])
