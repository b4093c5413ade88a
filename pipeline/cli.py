"""`python -m pipeline <command>`: the stages, as Snakemake calls them, and what a user runs by hand."""

import argparse
import importlib
import os
import sys

from pipeline.errors import PipelineError, one_line

STAGES = {
    "tile": "shard",
    "weights": "weights",
    "embed": "embed",
    "adopt": "features",
    "catalog": "cohort",
    "gate": "cohort",
    "split": "cohort",
    "train": "learn",
    "predict": "learn",
    "evaluate": "learn",
    "explain": "show",
    "report": "show",
}
"""Each stage and the module of pipeline/runners that runs it; imported only when it is called for."""

HOMES = {
    **STAGES,
    "outline": "outline",
    "sort-dicom": "sort_dicom",
    "import": "features",
    "export": "features",
}
"""Where a command's runner is; of the tools that are not named, in pipeline/runners/tools.py."""

TOOLS = {
    "check": "say in seconds what a run would do, who is missing and what it costs",
    "retry": "try failed images again in the next run",
    "verify": "read every byte of every store",
    "gc": "remove what the present plan does not name",
    "schema": "print the JSON schema of config.yaml",
    "summary": "print the figures of the last run",
    "outline": "print the tissue of a slide as GeoJSON, to be edited and put beside the slide",
    "sort-dicom": "put the CT slices of a dump into one folder per series, by links or copies",
    "import": "turn feature files of other tools into embedding stores",
    "export": "write the embeddings of the last run as files for other tools",
    "demo-cohort": "write a synthetic cohort of slides and CT series",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    top.add_argument("-d", "--directory", default=".", help="working directory, as for snakemake -d (default: here)")
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    for stage in STAGES:
        command = commands.add_parser(stage, help=f"one {stage} job of the plan (called by Snakemake)")
        command.add_argument("slice", help="results/plan/<stage>/<job>.json")
        command.add_argument("receipt", help="results/receipts/<stage>/<job>.json, to be written")
        command.add_argument("--threads", type=int, default=1)
        command.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"])
        command.add_argument("--memory-mb", type=float, default=float("inf"), help="of the process that reads images")
        command.add_argument("--silence-seconds", type=float, default=900, help="before such a process is stopped")
    for tool, text in TOOLS.items():
        command = commands.add_parser(tool, help=text)
        if tool in {"check", "gc", "summary"}:
            command.add_argument("--config", default="config.yaml", help="config file (default: config.yaml)")
        if tool == "retry":
            command.add_argument("images", nargs="*", help="ids from results/catalog.tsv (default: all that failed)")
        if tool == "verify":
            command.add_argument("--repair", action="store_true", help="remove damaged stores")
        if tool == "gc":
            command.add_argument("--yes", action="store_true", help="remove, and not only list")
        if tool == "outline":
            command.add_argument("image", help="id from results/catalog.tsv")
        if tool == "sort-dicom":
            command.add_argument("source", help="folder that holds the dump, searched in depth")
            command.add_argument("dest", help="folder to sort into, such as data/raw/ct")
            command.add_argument("--copy", action="store_true", help="copy the files, in place of links to them")
        if tool == "import":
            command.add_argument("source", help="folder of feature files, searched in depth")
            command.add_argument("dest", help="folder to write stores and import.tsv into")
            command.add_argument("--of", default="file", choices=["file", "folder"], help="what one image is")
        if tool == "export":
            command.add_argument("dest", help="folder to write into")
            command.add_argument("--format", default="h5", choices=["h5", "pt", "npz", "zarr"])
            command.add_argument("--images", nargs="+", default=[], help="ids from results/catalog.tsv (default: all)")
        if tool == "demo-cohort":
            command.add_argument("folder", help="folder to write into")
            command.add_argument("--seed", type=int, default=0)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a user's mistake ends as one line and exit code 1, a bug of ours with its traceback."""
    parsed = parser().parse_args(arguments)
    try:
        os.chdir(parsed.directory)
    except OSError as error:
        print(f"error: {parsed.directory}: {error.strerror}: name a folder", file=sys.stderr)
        return 1
    module = importlib.import_module(f"pipeline.runners.{HOMES.get(parsed.command, 'tools')}")
    try:
        getattr(module, f"run_{parsed.command.replace('-', '_')}")(parsed)
    except PipelineError as error:
        print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
        return 1
    except OSError as error:  # the disk is full, results cannot be written: the machine's state, no bug
        print(f"error: {error.filename or 'results'}: {one_line(error)}: mend this and run again", file=sys.stderr)
        return 1
    return 0
