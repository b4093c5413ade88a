"""Runs `weights`: what the hub has for a backbone, fetched once, before any worker needs it."""

import argparse

from pipeline.image_settings import BackboneSettings
from pipeline.runners.job import Job
from pipeline.shards import say


def run_weights(arguments: argparse.Namespace) -> None:
    """Fetch the weights of a backbone into the cache of the hub; the receipt says which commit and bytes they are."""
    from pipeline.weights import fetch

    job = Job.of(arguments)
    settings = BackboneSettings.model_validate(job.slice["settings"])
    fetched = fetch(settings)
    say(f"{settings.model}: {fetched['source']} at commit {fetched['commit']}, sha256 {fetched['sha256']}")
    job.finish(fetched=fetched)
