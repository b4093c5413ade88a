"""The version of what each stage computes. Raise a stage's number when its result changes for the same input.

Snakemake does not see edits below pipeline/; these numbers are how a changed stage makes its results be redone.
tests/test_versions.py fails when a stage's golden output changes while its number does not.
"""

VERSIONS = {
    "tile": 3,
    "weights": 1,
    "embed": 3,
    "adopt": 1,
    "gate": 1,
    "split": 1,
    "train": 1,
    "predict": 1,
    "evaluate": 1,
    "explain": 1,
    "catalog": 1,
    "report": 1,
}
