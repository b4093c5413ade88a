"""From raw slides and CT series to predictions: `snakemake --cores 8 --use-conda`."""

import os

from snakemake.utils import min_version

min_version("9.27")


# The config.yaml of the working directory (-d) is the experiment; without one, the repository's.
configfile:
    "config.yaml"
    if os.path.exists("config.yaml")
    else os.path.join(workflow.basedir, "config.yaml")


include: "workflow/rules/common.smk"
include: "workflow/rules/tile.smk"
include: "workflow/rules/embed.smk"
include: "workflow/rules/adopt.smk"
include: "workflow/rules/cohort.smk"
include: "workflow/rules/learn.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        planned_targets,
