"""A learned segmenter: files that are read, files that are refused, and pictures of any size."""

import pickle
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import ConfigError
from pipeline.image_settings import TissueSettings
from pipeline.images.segmenter import OVERLAP, PIECE, load, pieces, predict
from pipeline.images.tissue import segment


class Dark(torch.nn.Module):
    """Probability 1 - mean of the channels: 0 for white, 1 for black."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return 1 - batch.mean(dim=1, keepdim=True)


class Scores(torch.nn.Module):
    """Three classes: 0, the red, and minus the blue."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(batch[:, :1]), batch[:, :1], -batch[:, 2:]], dim=1)


class Blur(torch.nn.Module):
    """The mean of the red of 41 x 41 pixels: it sees 20 pixels around each."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(batch[:, :1], 41, 1, 20, count_include_pad=False)


class Size(torch.nn.Module):
    """Everywhere the height of the batch, in ten thousands."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(batch[:, :1]) + batch.shape[2] / 10000


class Half(torch.nn.Module):
    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return batch[:, :1, ::2, ::2]


class Double(torch.nn.Module):
    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return batch[:, :1] * 2


class Nothing(torch.nn.Module):
    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return batch[:, :1] / 0 * 0


class Pair(torch.nn.Module):
    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return batch, batch


@pytest.fixture
def script(tmp_path):
    def script(module: torch.nn.Module, name: str = "model.pt"):
        torch.jit.script(module).save(str(tmp_path / name))
        return tmp_path / name

    return script


@pytest.fixture
def dark_onnx(tmp_path):
    """The same as `Dark`."""
    nodes = [
        helper.make_node("ReduceMean", ["batch", "axes"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["one", "mean"], ["tissue"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([1], dtype=np.int64), "axes"),
        numpy_helper.from_array(np.array(1, dtype=np.float32), "one"),
    ]
    inputs = [helper.make_tensor_value_info("batch", TensorProto.FLOAT, [1, 3, "height", "width"])]
    outputs = [helper.make_tensor_value_info("tissue", TensorProto.FLOAT, [1, 1, "height", "width"])]
    graph = helper.make_graph(nodes, "dark", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "dark.onnx")
    return tmp_path / "dark.onnx"


def picture(rows: int = 5, columns: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["model.pt", "model.ts", "model.torchscript", "MODEL.PT"])
def test_torchscript_gives_the_probability_of_each_pixel(script, name):
    shown = picture()
    found = load(script(Dark(), name))(shown)
    assert found.dtype == np.float32
    assert found == pytest.approx(1 - shown.mean(axis=2) / 255, abs=1e-6)


def test_onnx_gives_the_probability_of_each_pixel(dark_onnx):
    shown = picture()
    found = predict(shown, dark_onnx)
    assert found.dtype == np.float32
    assert found == pytest.approx(1 - shown.mean(axis=2) / 255, abs=1e-6)


def test_scores_become_the_probability_of_class_1(script):
    shown = np.array([[[255, 0, 255], [0, 0, 0], [255, 9, 0]]], dtype=np.uint8)
    e = np.e
    assert predict(shown, script(Scores()))[0] == pytest.approx([e / (1 + e + 1 / e), 1 / 3, e / (1 + e + 1)])


def test_sides_are_filled_with_white_to_multiples_of_32(script):
    shown = np.zeros((33, 30, 3), dtype=np.uint8)
    assert predict(shown, script(Size(), "size.pt")) == pytest.approx(np.full((33, 30), 0.0064))
    # The window around the last pixel reaches 20 pixels up and left, and right to the two columns of white.
    blurred = predict(np.zeros((32, 30, 3), dtype=np.uint8), script(Blur(), "blur.pt"))
    assert blurred[31, 29] == pytest.approx(2 / (20 + 1 + 2), abs=1e-6) and blurred[0, 0] == 0


def test_pieces_share_64_pixels_and_each_gives_its_half():
    assert (PIECE, OVERLAP) == (2048, 64)
    assert pieces(10) == [(0, 0, 10)]
    assert pieces(2048) == [(0, 0, 2048)]
    assert pieces(4032) == [(0, 0, 2016), (1984, 2016, 4032)]
    assert pieces(4000) == [(0, 0, 2000), (1952, 2000, 4000)]
    assert pieces(5000) == [(0, 0, 2016), (1984, 2016, 3492), (2952, 3492, 5000)]


def test_large_pictures_have_no_seams(script):
    """A network that sees up to 32 pixels around each gives the same as on the whole."""
    shown = np.random.default_rng(0).integers(0, 256, (70, 4512, 3), dtype=np.uint8)
    whole = np.pad(shown, ((0, 26), (0, 0), (0, 0)), constant_values=255).astype(np.float32) / 255
    wanted = Blur()(torch.from_numpy(whole.transpose(2, 0, 1)[None].copy()))[0, 0, :70, :4512].numpy()
    for name in ("wide", "high"):
        found = predict(shown if name == "wide" else shown.transpose(1, 0, 2), script(Blur(), f"{name}.pt"))
        assert np.abs((found if name == "wide" else found.T) - wanted).max() < 1e-5


def test_tissue_is_what_has_the_probability(script):
    shown = np.array([[[102] * 3, [127] * 3, [129] * 3, [255] * 3]], dtype=np.uint8)  # 0.6, 0.502, 0.494, 0
    settings = TissueSettings(method="model", model=str(script(Dark())), probability=0.5)
    assert segment(shown, np.ones((1, 4), dtype=bool), settings, 1, 1).mask.tolist() == [[True, True, False, False]]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Half(), r"makes \(1, 1, 16, 32\) of \(1, 3, 32, 64\): export it so that it gives a score to each pixel$"),
        (Double(), r"gives .* to .*, which is no probability: end it with a sigmoid, or give it two classes$"),
        (Nothing(), r"gives nan to nan, which is no probability: "),
        (Pair(), r"fails on \(1, 3, 32, 64\): "),
        (torch.nn.Conv2d(1, 1, 1), r"fails on \(1, 3, 32, 64\): "),
    ],
)
def test_a_network_that_answers_otherwise_is_refused_in_one_line(script, module, message):
    with pytest.raises(ConfigError, match="^slide.tissue.model: the network " + message) as caught:
        predict(picture(), script(module))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^slide.tissue.model: .*no.pt is not there: name the file"):
        load(tmp_path / "no.pt")
    (tmp_path / "model.h5").touch()
    with pytest.raises(ConfigError, match=r"^slide.tissue.model: .* is neither TorchScript \(.pt\) nor ONNX"):
        load(tmp_path / "model.h5")


@pytest.mark.parametrize("name", ["model.pt", "model.onnx"])
@pytest.mark.parametrize("content", [b"", b"no model", b"PK\3\4" + bytes(100)])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=r"^slide.tissue.model: .* is no (TorchScript|usable ONNX) file: ") as caught:
        load(tmp_path / name)
    assert "\n" not in str(caught.value)


class Trap:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (self.path, "w")


def test_pickles_are_refused_and_never_run(tmp_path):
    trap = Trap(str(tmp_path / "sprung"))
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(trap))
    torch.save({"weight": torch.zeros(1), "trap": trap}, tmp_path / "saved.pt")
    for name in ("plain.pt", "saved.pt"):
        with pytest.raises(ConfigError, match="is no TorchScript file"):
            load(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_without_onnxruntime_the_message_says_what_to_install(dark_onnx, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"onnxruntime is not installed: pip install slide-to-prediction\[onnx\]$"):
        load(dark_onnx)
