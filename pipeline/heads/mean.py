"""The baseline: a linear classifier on the mean embedding of a bag."""

import torch
from torch import Tensor, nn

from pipeline.heads.base import Head, HeadOutput, bag_index, segment_sum


class MeanHead(Head):
    """Mean of a bag's embeddings, dropout, one linear layer. Every instance gets the same attention."""

    def __init__(self, features: int, classes: int, dropout: float = 0.0) -> None:
        """Build the head; `dropout` acts on the mean embedding, before the classifier."""
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(features, classes)

    def forward(self, instances: Tensor, lengths: Tensor, graph: Tensor | None = None) -> HeadOutput:
        """Judge packed bags, as `Head.forward` says; `graph` is not used."""
        attention = (1.0 / lengths.to(torch.float32))[bag_index(lengths)]  # (instance,)
        embeddings = segment_sum(attention[:, None] * instances, lengths)  # (bag, feature)
        return HeadOutput(self.classifier(self.dropout(embeddings)), attention)
