"""How much of a label a linear model finds in embeddings: a measure of a cohort's difficulty, not of any head."""

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def probe(
    embeddings: NDArray[np.floating],
    labels: NDArray[np.integer],
    groups: NDArray[np.generic],
    folds: int = 4,
    repeats: int = 5,
    strength: float = 0.01,
) -> float:
    """Mean AUROC of a logistic regression on held-out groups; 0.5 is chance.

    Args:
        embeddings: one row per instance or bag (row, feature).
        labels: 0 or 1 per row.
        groups: patient of each row; no patient is in training and test at once.
        folds: parts that the groups are divided into.
        repeats: how often they are divided anew. Few bags: one division says little.
        strength: inverse of the L2 penalty, on standardised features.
    """
    scores = []
    for seed in range(repeats):
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        for train, test in splitter.split(embeddings, labels, groups):
            if len(np.unique(labels[test])) < 2:
                continue  # AUROC needs both classes
            model = make_pipeline(
                StandardScaler(), LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)
            )
            model.fit(embeddings[train], labels[train])
            scores.append(roc_auc_score(labels[test], model.decision_function(embeddings[test])))
    return float(np.mean(scores))
