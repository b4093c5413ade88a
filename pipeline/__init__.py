"""From whole-slide images and CT series to predictions: the importable package, without Snakemake."""

__version__ = "0.1.0"
