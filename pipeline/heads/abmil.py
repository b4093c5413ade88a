"""ABMIL: attention-based deep multiple-instance learning.

Ilse, Tomczak, Welling: Attention-based Deep Multiple Instance Learning, ICML 2018, https://arxiv.org/abs/1802.04712
"""

import torch
from torch import Tensor, nn

from pipeline.heads.base import Head, HeadOutput, segment_softmax, segment_sum


class AttentionHead(Head):
    """A bag is the attention-weighted mean of its instances.

    With h_k = ReLU(E x_k + e) the reduced embedding of instance k, the bag is z = sum_k a_k h_k (equation 7), where
    a = softmax over the bag's instances of

        w' tanh(V h_k)                        plain, equation 8
        w' (tanh(V h_k) * sigmoid(U h_k))     gated, equation 9

    and the logits are linear in z.

    Deviations from the paper:
        * x_k is the embedding of a frozen backbone and not the output of a network trained along; the layer E with
          ReLU stands in its place, and `hidden` is both its width and that of V and U.
        * V and U have biases; w has none, as the softmax would cancel it.
        * dropout before the classifier, and one logit per class with cross-entropy in place of one Bernoulli parameter.
    """

    def __init__(
        self, features: int, classes: int, hidden: int = 128, gated: bool = True, dropout: float = 0.0
    ) -> None:
        """Build the head; `dropout` acts on the bag's embedding z."""
        super().__init__()
        self.embed = nn.Linear(features, hidden)
        self.content = nn.Linear(hidden, hidden)  # V
        self.gate = nn.Linear(hidden, hidden) if gated else None  # U
        self.score = nn.Linear(hidden, 1, bias=False)  # w
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden, classes)

    def forward(self, instances: Tensor, lengths: Tensor, graph: Tensor | None = None) -> HeadOutput:
        """Judge packed bags, as `Head.forward` says; `graph` is not used."""
        embeddings = torch.relu(self.embed(instances))  # (instance, hidden)
        branch = torch.tanh(self.content(embeddings))
        if self.gate is not None:
            branch = branch * torch.sigmoid(self.gate(embeddings))
        scores = self.score(branch).squeeze(1).float()  # (instance,)
        attention = segment_softmax(scores, lengths)
        bags = segment_sum(attention[:, None] * embeddings, lengths)  # (bag, hidden)
        return HeadOutput(self.classifier(self.dropout(bags)), attention)
