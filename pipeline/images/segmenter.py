"""A network on disk that finds tissue: a TorchScript file, or an ONNX file.

Input: float32 (1, 3, height, width), RGB between 0 and 1, at `slide.tissue.mpp`, sides multiples of 32.
Output, of the same height and width: (1, 1, height, width), the probability of tissue; or (1, class, height, width),
scores of two classes or more, of which number 1 is tissue: the softmax is taken of them.

Pictures with a side of more than 2048 pixels are done in pieces. A U-Net of usual size takes 2 to 4 GB for one.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, one_line

PIECE = 2048
"""Longest side, in pixels, that the network sees at once."""

OVERLAP = 64
"""Pixels that neighbouring pieces share, at least. Each gives its half of them."""

MULTIPLE = 32
"""A network that halves its picture five times needs sides that are multiples of this."""

TORCHSCRIPT, ONNX = (".pt", ".torchscript", ".ts"), (".onnx",)

Network = Callable[[NDArray[np.float32]], Any]
Segmenter = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def predict(picture: NDArray[np.uint8], path: Path) -> NDArray[np.float32]:
    """Probability of tissue, (row, column), by the network in a file. Picture (row, column, 3), RGB.

    Raises:
        ConfigError: the file cannot be used.
    """
    return load(path)(picture)


@lru_cache(maxsize=1)
def load(path: Path) -> Segmenter:
    """The network in a file: a picture (row, column, 3) uint8, RGB, gives probabilities (row, column) float32.

    Raises:
        ConfigError: the file cannot be used; also when the network is called.
    """
    suffix = path.suffix.lower()
    if suffix not in TORCHSCRIPT + ONNX:
        raise ConfigError(f"slide.tissue.model: {path} is neither TorchScript (.pt) nor ONNX (.onnx): export it as one")
    if not path.is_file():
        raise ConfigError(f"slide.tissue.model: {path} is not there: name the file that holds the network")
    network = _onnx(path) if suffix in ONNX else _torchscript(path)

    def segmenter(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        rows, columns = picture.shape[:2]
        probability = np.empty((rows, columns), dtype=np.float32)
        for top, above, below in pieces(rows):
            for left, before, after in pieces(columns):
                part = _probability(network, picture[top : top + PIECE, left : left + PIECE])
                probability[above:below, before:after] = part[above - top : below - top, before - left : after - left]
        return probability

    return segmenter


def pieces(length: int) -> list[tuple[int, int, int]]:
    """Where the pieces of a side start, and from where to where their results are used, in pixels.

    Example:
        >>> pieces(4000)
        [(0, 0, 2000), (1952, 2000, 4000)]
    """
    last = max(0, length - PIECE)
    starts = [*range(0, last, PIECE - OVERLAP), last]
    middles = [(before + PIECE + after) // 2 for before, after in pairwise(starts)]
    return list(zip(starts, [0, *middles], [*middles, length], strict=True))


def _probability(network: Network, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Probability of tissue, (row, column), of a picture that fits the network at once."""
    rows, columns = picture.shape[:2]
    white = ((0, -rows % MULTIPLE), (0, -columns % MULTIPLE), (0, 0))
    padded = np.pad(picture, white, constant_values=255)
    batch = np.ascontiguousarray(padded.transpose(2, 0, 1)[None], dtype=np.float32) / np.float32(255)
    try:
        output = np.asarray(network(batch))
    except Exception as error:  # whatever a stranger's network raises
        raise ConfigError(f"slide.tissue.model: the network fails on {batch.shape}: {one_line(error)}") from None
    if output.ndim != 4 or output.shape[0] != 1 or output.shape[1] < 1 or output.shape[2:] != batch.shape[2:]:
        raise ConfigError(
            f"slide.tissue.model: the network makes {output.shape} of {batch.shape}: "
            "export it so that it gives a score to each pixel"
        )
    scores = output[0, :, :rows, :columns].astype(np.float32)
    if len(scores) == 1:
        if not ((scores >= 0) & (scores <= 1)).all():
            raise ConfigError(
                f"slide.tissue.model: the network gives {scores.min():g} to {scores.max():g}, which is no probability: "
                "end it with a sigmoid, or give it two classes"
            )
        return np.asarray(scores[0])
    if not np.isfinite(scores).all():
        raise ConfigError("slide.tissue.model: the network gives scores that are not finite: check its weights")
    powers = np.exp(scores - scores.max(axis=0))
    return np.asarray(powers[1] / powers.sum(axis=0))


def _torchscript(path: Path) -> Network:
    import torch

    try:
        # Torch's own reader of archives, which knows tensors and its own types alone: Python's pickle runs nothing.
        module = torch.jit.load(str(path), map_location="cpu").eval()
    except Exception as error:
        raise ConfigError(
            f"slide.tissue.model: {path} is no TorchScript file: {one_line(error)}: write it with torch.jit.save"
        ) from None

    def network(batch: NDArray[np.float32]) -> Any:
        with torch.inference_mode():
            return module(torch.from_numpy(batch)).numpy()

    return network


def _onnx(path: Path) -> Network:
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(
            "slide.tissue.model: onnxruntime is not installed: pip install slide-to-prediction[onnx]"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # as many jobs as cores run at once
    options.log_severity_level = 4  # what fails is raised
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ConfigError(f"slide.tissue.model: {path} is no usable ONNX file: {one_line(error)}") from None
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})[0]
