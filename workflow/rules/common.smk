# Checked settings, the plan, and the input and resource functions of all rules. No rules here.
import functools
import json
import os
import shlex
import sys

# current_basedir and not basedir: another workflow may import this one as a module.
ROOT = os.path.realpath(os.path.join(str(workflow.current_basedir), "..", ".."))
sys.path.insert(0, ROOT)

from pipeline.config import load_config
from pipeline.errors import PipelineError
from pipeline.plan import build

# Quoted: the repository's path may have spaces. Snakemake clears PYTHONPATH in conda environments; this sets it inside.
shell.prefix(f"export PYTHONPATH={shlex.quote(ROOT)}; ")


# Jobs find this interpreter when the environment was not activated; one that --use-conda activates comes before it.
os.environ.update(
    PATH=os.pathsep.join([os.path.dirname(sys.executable), *os.get_exec_path()])
)


wildcard_constraints:
    name=r"[a-z0-9_-]+",
    digest=r"[0-9a-f]{12}",


def stop(error):
    """End with the one line that a user's mistake is worth."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)


try:
    settings = load_config(config)
except PipelineError as error:
    stop(error)


@functools.cache
def plan():
    """The plan, built and written once per process; only the process that a user started asks for it."""
    try:
        found = build(settings)
    except PipelineError as error:
        stop(error)
    found.write()
    if found.waiting:
        print(
            f"{len(found.waiting)} images changed too recently or are not all there: they wait for the next run",
            file=sys.stderr,
        )
    for kind in found.images:
        for warning in found.warnings(settings, kind):
            print(f"warning: {warning}", file=sys.stderr)
    return found


def planned_targets(wildcards):
    """The catalog and the report of the present plan."""
    return plan().targets


@functools.cache
def read_slice(stage, name, digest):
    """What the plan says of one job."""
    with open(f"results/plan/{stage}/{name}.{digest}.json") as file:
        return json.load(file)


def upstream(stage):
    """An input function: the receipts that a job of a stage waits for."""

    def receipts(wildcards):
        return read_slice(stage, wildcards.name, wildcards.digest)["upstream"]

    return receipts


def images(stage, wildcards):
    """How many images a job maps over."""
    return len(read_slice(stage, wildcards.name, wildcards.digest)["images"])


def tile_minutes(wildcards):
    """Walltime: half an hour, and 5 minutes a slide or 6 seconds a series."""
    each = 5 if wildcards.name.startswith("slide") else 0.1
    return 30 + round(images("tile", wildcards) * each)


def embed_minutes(wildcards):
    """Walltime: half an hour, and 15 minutes a slide or 12 seconds a series, of a GPU."""
    each = 15 if wildcards.name.startswith("slide") else 0.2
    return 30 + round(images("embed", wildcards) * each)


def adopt_minutes(wildcards):
    """Walltime: half an hour, and a minute an image."""
    return 30 + images("adopt", wildcards)
