"""How far precision, batch, layout and compiling move an embedding, in millionths of its norm."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from common import Figure, figure, main, say
from numpy.typing import NDArray

MODELS = ("resnet18", "vit_small_patch16_224")
EXACT = 10.0
"""Most that a setting may move an embedding which is said to change how fast and not what is embedded, in ppm."""

ROUNDED = {"bf16": 30_000.0, "fp16": 4_000.0}
"""Most that a precision may."""


def measure(folder: Path, quick: bool) -> list[Figure]:
    """Models with random weights, on a GPU where there is one."""
    found = []
    for model in MODELS[:1] if quick else MODELS:
        found += of_model(model, 8 if quick else 32, quick)
    return found


def of_model(model: str, count: int, quick: bool) -> list[Figure]:
    """Each setting against fp32 in batches of 32, channels last, kept in fp32."""
    tiles, short = synthetic(count), model.split("_patch")[0]
    exact, where = embeddings(model, tiles)
    rounded, _ = embeddings(model, tiles, precision="bf16")
    others = 1e6 * gaps(np.roll(exact, 1, axis=0), exact)
    setup = f"{model}, random weights, {count} tiles of 256 px, {where}; different tiles: {others.min():.0f} and more"

    def moved(name: str, most: float, wanted: NDArray[np.float64] = exact, **changes: Any) -> Figure:
        say(f"{model}: {name}")
        began = time.perf_counter()
        values, _ = embeddings(model, tiles, **changes)
        took = time.perf_counter() - began
        worst = float(1e6 * gaps(values, wanted).max())
        what = ", ".join(f"{key}: {value}" for key, value in changes.items()) or "the same once more"
        return figure(f"tolerance.{short}.{name}", worst, "ppm", most, f"{what}; {setup}; {took:.1f} s with loading")

    found = [
        moved("two_runs", 0.0),
        moved("batch_1", EXACT, batch=1),
        moved("batch_8", EXACT, batch=8),
        moved("layout", EXACT, channels_last=False),
        moved("bf16", ROUNDED["bf16"], precision="bf16"),
        moved("bf16_batch_8", ROUNDED["bf16"], rounded, precision="bf16", batch=8),
        moved("fp16", ROUNDED["fp16"], precision="fp16"),
        moved("kept_in_fp16", 500.0, dtype="fp16"),
    ]
    return found if quick else [*found, moved("compiled", EXACT, compile=True)]


def embeddings(model: str, tiles: NDArray[np.uint8], **changes: Any) -> tuple[NDArray[np.float64], str]:
    """(tile, feature), and on what."""
    from pipeline.backbone import load_backbone
    from pipeline.device import choose_device
    from pipeline.image_settings import BackboneSettings

    settings = {"model": model, "weights": "random", "dtype": "fp32", **changes}
    device = choose_device("auto")
    backbone = load_backbone(BackboneSettings.model_validate(settings), device)
    found = []
    for first in range(0, len(tiles), backbone.batch):
        batch = np.zeros((backbone.batch, *tiles.shape[1:]), np.uint8)
        some = tiles[first : first + backbone.batch]
        batch[: len(some)] = some
        found.append(backbone.submit(batch).result()[0][: len(some)])
    return np.concatenate(found).astype(np.float64), device.type


def gaps(values: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Norm of each row's difference by its norm."""
    found: NDArray[np.float64] = np.linalg.norm(values - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    return found


def synthetic(count: int) -> NDArray[np.uint8]:
    """Tiles (tile, 256, 256, 3): clouds of colour, and the noise of a camera."""
    rng = np.random.default_rng(0)
    tiles = []
    for side in rng.integers(4, 65, count):
        clouds = PIL.Image.fromarray(rng.integers(60, 256, (side, side, 3), dtype=np.uint8)).resize((256, 256))
        tiles.append(np.clip(np.asarray(clouds) + rng.normal(0, 6, (256, 256, 3)), 0, 255).astype(np.uint8))
    return np.stack(tiles)


if __name__ == "__main__":
    raise SystemExit(main(__doc__ or "", measure))
