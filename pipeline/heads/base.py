"""What every head takes and returns, and the segment operations that packed bags need.

Bags are packed, never padded: the instances of all bags of a batch stand one after another in one matrix, and
`lengths` says how many belong to each. There is no mask that could be forgotten.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class HeadOutput:
    """What a head says about a batch of bags. A head with more to say subclasses this and reads it in `loss`."""

    logits: Tensor
    """(bag, class)"""
    attention: Tensor
    """(instance,): non-negative, sums to one over each bag."""


class Head(nn.Module, ABC):
    """A multiple-instance head, built as `Head(features, classes, **settings)`."""

    @abstractmethod
    def forward(self, instances: Tensor, lengths: Tensor, graph: Tensor | None = None) -> HeadOutput:
        """Judge a batch of packed bags.

        Args:
            instances: (instance, feature), bag after bag.
            lengths: (bag,) int64, instances of each bag, at least one each.
            graph: (2, edge) int64 neighbours among the packed instances, for heads that use them.
        """

    def loss(self, output: HeadOutput, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of the bag logits, a scalar; heads with further terms add them here.

        ASSUME: class weights scale each bag's own loss and the mean is over bags, so that a step of one bag and a step
        of several weigh a bag alike (torch's built-in `weight` would divide the weight out again in a step of one bag).
        """
        losses = functional.cross_entropy(output.logits.float(), labels, reduction="none")
        return (losses if class_weights is None else losses * class_weights[labels]).mean()

    def after_step(self) -> None:
        """Called after each optimiser step; heads with a momentum network update it here."""


def bag_index(lengths: Tensor) -> Tensor:
    """For each packed instance the number of its bag: (instance,) int64."""
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)


def segment_softmax(scores: Tensor, lengths: Tensor) -> Tensor:
    """Softmax of scores (instance,) within each bag, computed in float32."""
    index = bag_index(lengths)
    scores = scores.float()
    highest = torch.full((len(lengths),), -torch.inf, device=scores.device).scatter_reduce(
        0, index, scores.detach(), "amax"
    )
    weights = torch.exp(scores - highest[index])
    totals = torch.zeros(len(lengths), device=scores.device).index_add(0, index, weights)
    return weights / totals[index]


def segment_sum(values: Tensor, lengths: Tensor) -> Tensor:
    """Sum of values (instance, feature) over each bag: (bag, feature)."""
    return values.new_zeros(len(lengths), values.shape[1]).index_add(0, bag_index(lengths), values)
