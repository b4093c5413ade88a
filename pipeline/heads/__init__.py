"""The heads a config can name. A new head is one file in this folder and one line in `HEADS`."""

from inspect import signature

from pipeline.config import HeadSettings
from pipeline.heads.abmil import AttentionHead
from pipeline.heads.base import Head, HeadOutput
from pipeline.heads.mean import MeanHead

__all__ = ["HEADS", "AttentionHead", "Head", "HeadOutput", "MeanHead", "build_head"]

HEADS: dict[str, type[Head]] = {"mean": MeanHead, "abmil": AttentionHead}


def build_head(settings: HeadSettings, features: int, classes: int) -> Head:
    """The head that settings ask for, freshly initialised from torch's global generator.

    A head receives those settings that its constructor names; `hidden`, say, means nothing to the mean head.

    Args:
        settings: one head's section of the config.
        features: width of an embedding.
        classes: number of classes, at least two.
    """
    head = HEADS[settings.method]
    named = signature(head).parameters
    return head(features, classes, **{name: value for name, value in settings if name in named})
