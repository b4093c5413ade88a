"""What every head promises, asked of all of HEADS, and the values of each on a bag that fits the hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.config import HeadSettings
from pipeline.heads import HEADS, AttentionHead, Head, MeanHead, build_head

FEATURES = 6
SETTINGS = [
    HeadSettings(method="mean", dropout=0.25),
    HeadSettings(method="abmil", hidden=8, gated=True, dropout=0.25),
    HeadSettings(method="abmil", hidden=8, gated=False, dropout=0.25),
]


def test_every_head_of_heads_is_asked_here() -> None:
    """A head added to HEADS without a line in SETTINGS would escape the contract."""
    assert {settings.method for settings in SETTINGS} == set(HEADS)


@pytest.fixture(params=SETTINGS, ids=lambda settings: f"{settings.method}-{settings.gated}")
def head(request: pytest.FixtureRequest) -> Head:
    """A head in evaluation mode, three classes, fixed weights."""
    torch.manual_seed(0)
    return build_head(request.param, FEATURES, 3).eval()


def bags(*lengths: int) -> list[Tensor]:
    """Bags of standard normal instances, the same for the same lengths."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, FEATURES, generator=generator) for length in lengths]


def packed(members: list[Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat(members), torch.tensor([len(bag) for bag in members])


def test_one_logit_per_class_and_one_weight_per_instance(head: Head) -> None:
    output = head(*packed(bags(4, 1, 7)))

    assert output.logits.shape == (3, 3)
    assert output.attention.shape == (12,)


def test_attention_is_a_distribution_over_each_bag(head: Head) -> None:
    output = head(*packed(bags(4, 1, 7)))

    assert output.attention.dtype == torch.float32
    assert (output.attention >= 0).all()
    sums = [part.sum().item() for part in output.attention.split([4, 1, 7])]
    assert sums == pytest.approx([1, 1, 1], abs=1e-6)


def test_packed_equals_one_by_one(head: Head) -> None:
    members = bags(4, 1, 7, 30)
    together = head(*packed(members))
    alone = [head(*packed([bag])) for bag in members]

    torch.testing.assert_close(together.logits, torch.cat([output.logits for output in alone]), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        together.attention, torch.cat([output.attention for output in alone]), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6, -1e6])
def test_neighbours_in_the_batch_change_nothing(head: Head, value: float) -> None:
    left, own, right = bags(4, 5, 7)
    quiet = head(*packed([left, own, right]))
    loud = head(*packed([torch.full_like(left, value), own, torch.full_like(right, value)]))

    assert torch.equal(loud.logits[1], quiet.logits[1])
    assert torch.equal(loud.attention[4:9], quiet.attention[4:9])


def test_broken_neighbours_leave_the_gradient_alone(head: Head) -> None:
    """The gradient of one bag's logits stays finite, and the same, beside a huge neighbour."""
    own, other = bags(5, 4)
    gradients = []
    for neighbour in (other, torch.full_like(other, 1e6)):
        instances = own.clone().requires_grad_()
        head(torch.cat([instances, neighbour]), torch.tensor([5, 4])).logits[0].sum().backward()
        assert instances.grad is not None
        gradients.append(instances.grad)

    assert torch.isfinite(gradients[0]).all()
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-7, rtol=1e-5)


def test_a_bag_of_one_instance_has_all_attention_on_it(head: Head) -> None:
    output = head(*packed(bags(1)))

    assert output.attention.tolist() == [1.0]
    assert torch.isfinite(output.logits).all()


def test_the_order_of_instances_changes_nothing(head: Head) -> None:
    [bag] = bags(9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    straight, shuffled = head(*packed([bag])), head(*packed([bag[order]]))

    torch.testing.assert_close(shuffled.logits, straight.logits, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(shuffled.attention, straight.attention[order], atol=1e-6, rtol=1e-5)


def test_every_parameter_receives_a_gradient(head: Head) -> None:
    head.loss(head(*packed(bags(4, 5, 7))), torch.tensor([0, 1, 2])).backward()

    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_eight_bags_can_be_memorised(head: Head) -> None:
    """With labels that follow no rule; a dead layer or a pooled-away bag shows here."""
    instances, lengths = packed(bags(3, 4, 5, 6, 3, 4, 5, 6))
    labels = torch.tensor([0, 1, 2, 0, 2, 1, 0, 2])
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        head.loss(head(instances, lengths), labels).backward()
        optimizer.step()

    assert head(instances, lengths).logits.argmax(dim=1).tolist() == labels.tolist()


def test_dropout_acts_in_training_mode_only(head: Head) -> None:
    batch = packed(bags(4, 5))
    assert torch.equal(head(*batch).logits, head(*batch).logits)

    head.train()
    assert not torch.equal(head(*batch).logits, head(*batch).logits)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: f"{settings.method}-{settings.gated}")
def test_saved_weights_load_strictly_and_give_the_same_logits(settings: HeadSettings, tmp_path: Path) -> None:
    torch.manual_seed(0)
    written, read = build_head(settings, FEATURES, 3).eval(), build_head(settings, FEATURES, 3).eval()
    batch = packed(bags(4, 5))
    assert not torch.equal(read(*batch).logits, written(*batch).logits)

    save_file(written.state_dict(), tmp_path / "head.safetensors")
    read.load_state_dict(load_file(tmp_path / "head.safetensors"), strict=True)

    assert torch.equal(read(*batch).logits, written(*batch).logits)


def test_mean_head_by_hand() -> None:
    """Mean of (1, 2), (3, 6) is (2, 4); logits 1*2 - 1*4 + 0.5 and 0*2 + 2*4 - 1."""
    head = MeanHead(2, 2).eval()
    head.load_state_dict(
        {"classifier.weight": torch.tensor([[1.0, -1.0], [0.0, 2.0]]), "classifier.bias": torch.tensor([0.5, -1.0])}
    )

    output = head(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([2]))

    assert output.logits.tolist() == [[-1.5, 7.0]]
    assert output.attention.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("gated", [True, False])
def test_attention_head_follows_its_equations(gated: bool) -> None:
    """Equations 7 to 9 in numpy, on three instances with two features and two hidden units."""
    x = np.array([[1.0, -2.0], [0.5, 0.25], [-1.0, 3.0]])
    e_w, e_b = np.array([[1.0, 0.5], [-0.5, 1.0]]), np.array([0.1, 0.2])
    v_w, v_b = np.array([[0.3, -0.7], [1.1, 0.2]]), np.array([0.0, -0.1])
    u_w, u_b = np.array([[-0.4, 0.9], [0.6, 0.8]]), np.array([0.3, 0.0])
    w = np.array([1.5, -2.0])
    c_w, c_b = np.array([[1.0, 2.0], [-1.0, 0.5], [0.0, 3.0]]), np.array([0.0, 0.1, -0.2])
    h = np.maximum(x @ e_w.T + e_b, 0)
    branch = np.tanh(h @ v_w.T + v_b)
    if gated:
        branch = branch / (1 + np.exp(-(h @ u_w.T + u_b)))
    a = np.exp(branch @ w) / np.exp(branch @ w).sum()
    logits = c_w @ (a @ h) + c_b

    head = AttentionHead(2, 3, hidden=2, gated=gated).eval()
    weights = {"embed.weight": e_w, "embed.bias": e_b, "content.weight": v_w, "content.bias": v_b}
    weights |= {"gate.weight": u_w, "gate.bias": u_b} if gated else {}
    weights |= {"score.weight": w[None], "classifier.weight": c_w, "classifier.bias": c_b}
    head.load_state_dict({name: torch.tensor(value, dtype=torch.float32) for name, value in weights.items()})
    output = head(torch.tensor(x, dtype=torch.float32), torch.tensor([3]))

    assert output.attention.tolist() == pytest.approx(a.tolist(), abs=1e-6)
    assert output.logits[0].tolist() == pytest.approx(logits.tolist(), abs=1e-5)


def test_settings_reach_the_head_they_are_for() -> None:
    head = build_head(HeadSettings(method="abmil", hidden=5, gated=False, dropout=0.5), FEATURES, 2)

    assert isinstance(head, AttentionHead)
    assert head.embed.weight.shape == (5, FEATURES)
    assert head.gate is None
    assert head.dropout.p == 0.5
