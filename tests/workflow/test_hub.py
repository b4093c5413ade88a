"""Weights from the hub: one job fetches them before any other needs them, and nobody asks the hub again."""

import json
from pathlib import Path

import safetensors.torch
import timm
import torch

from support.fake_hub import Repository, serve
from support.workspace import Workspace, write_series, write_slide

SOURCE = "timm/test_resnet.r160_in1k"


def test_weights_are_fetched_by_one_job_and_never_again(tmp_path: Path, repository: Path) -> None:
    work = Workspace(tmp_path / "work", repository)
    raw = work.folder / "data/raw"
    for number in range(6):
        write_slide(raw / f"slides/{number}.tiff", number)
    write_series(raw / "ct/0", 0)
    backbone = {"model": "test_resnet", "weights": "hub", "input_size": 32, "batch": 8}
    work.configure(slide__images_per_shard=2, slide__backbone=backbone, series__backbone=backbone)
    torch.manual_seed(3)
    state = timm.create_model("test_resnet", pretrained=False).state_dict()
    cache = {"HF_HOME": str(tmp_path / "huggingface")}
    with serve({SOURCE: Repository.of({"model.safetensors": safetensors.torch.save(state)})}) as hub:
        away = {**cache, "HF_ENDPOINT": hub.address}
        text = work.run(fails=True, env={**cache, "HF_HUB_OFFLINE": "1"})
        assert "weights" in text and not (work.folder / "results/receipts/embed").exists()
        (line,) = [line for line in work.logs("weights").splitlines() if line.startswith("error: ")]
        assert "is not in the cache, and the Hugging Face hub cannot be reached: fetch the weights" in line

        shards = work.job_names("Embed the tiles of shard")
        assert work.jobs()["weights"] == 1 and len(shards) >= 4
        work.run(env=away)
        asked = sum(hub.requests.values())
        downloads = [n for what, n in hub.requests.items() if what.startswith("GET ") and "/resolve/" in what]
        assert sum(downloads) == 1

    receipts = [json.loads(path.read_bytes()) for path in (work.folder / "results/receipts/embed").glob("*.json")]
    (fetched,) = [
        json.loads(path.read_bytes())["fetched"] for path in (work.folder / "results/receipts/weights").glob("*.json")
    ]
    assert {receipt["weights"] for receipt in receipts} == {f"sha256 {fetched['sha256']}"}
    assert fetched["source"] == SOURCE and len(fetched["commit"]) == 40

    # A slide is dropped when the hub is gone: the weights are there.
    write_slide(raw / "slides/late.tiff", 9)
    assert "weights" not in work.jobs()
    work.run(env={**cache, "HF_ENDPOINT": hub.address})
    assert work.catalog()["slides/late.tiff"]["status"] == "done"
    assert sum(hub.requests.values()) == asked
