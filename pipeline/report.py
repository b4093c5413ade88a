"""The report: one HTML page that needs nothing beside itself. Plain data in, text out.

All text from data (ids, reasons, labels, settings) is escaped by the template. Figures are data URIs; there is no
script and no address of another machine, so the page reads the same in an e-mail, on paper and in ten years.
"""

from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.figures import roc_points, roc_svg

Row = Mapping[str, Any]

STATUSES = {
    "done": "in the results",
    "empty": "nothing to embed",
    "failed": "could not be used",
    "missing": "named in the labels, file not there",
    "excluded": "left out by its row of the labels",
    "waiting": "changed too recently, or not all there: waits for the next run",
}
"""Status of an image, and what it says to a reader; in the order of the report."""
MPP_READ = ("property", "tiff", "ome")
"""Where a resolution is from that the file itself states: nothing to explain."""
MPP_SOURCES = {
    "labels": "stated in the labels",
    "config": "stated in the settings (slide.native_mpp)",
    "objective": "derived from the power of the objective",
}
MOST_PREDICTIONS, MOST_IGNORED, MOST_TEST_USES, MOST_ODD = 200, 50, 50, 200
GLANCES = {"slide": (60, 180, 12_000), "series": (12, 820, 90_000)}
"""Of each modality: pictures on the page, their longest side in pixels and about their bytes; it goes by e-mail."""


@dataclass(frozen=True)
class Modality:
    """What the report says about the slides, or about the series. Every row is a mapping as JSON gives it."""

    name: str
    """`slide` or `series`."""
    backbone: Row
    """`model`, `weights` (hub, file, random; adopted: there is none), `revision`, `file`, `seed` as in the settings;
    `sha256` where known."""
    images: Sequence[Row] = ()
    """`image`, `status` (one of STATUSES), `reason`; where known `mpp` (of its tiles, µm per pixel), `mpp_source` and
    `notes` (text)."""
    counts: Row = field(default_factory=dict)
    """`patients`, `bags`, `labelled` (bags by class), `unlabelled` (bags), `mixed_patients`."""
    evaluation: Row | None = None
    """`classes` (names, in the order of the logits), `confidence`, `heads` (by name, an `Evaluation` of
    pipeline/evaluation.py as a mapping) and `pairs` (`a`, `b` and a `Comparison`). None: nothing was learnt."""
    nothing_learnt: str = ""
    """Why there is no evaluation, such as `there is no table of labels`."""
    roc: Sequence[Row] = ()
    """`head`, `positive` (a class), and over the bags `labels`, `scores`, `folds`: test folds only."""
    predictions: Sequence[Row] = ()
    """`bag`, `head`, `probabilities` (by class: `mean`, `low`, `high` over the folds), `in_training` (its patient)."""
    pictures: Sequence[Row] = ()
    """`png` (bytes), `bag`, `head`, `fold`, `label`, `predicted` (a class), `probability` (of that class)."""
    glances: Sequence[Row] = ()
    """`jpeg` (bytes) of the choice of tiles, or of slices in their windows, `image`, `status`, `tiles`, `removed`
    (text: tiles by what removed them). As many as GLANCES says; `glances_left_out` more are in files, `glances_gone` in
    none."""
    spent: Row = field(default_factory=dict)
    """Seconds that embedding took, by what was done (pipeline/timing.py); empty: nobody measured."""
    verdict: str = ""
    """What embedding was bound by, and the setting to change."""
    warnings: Sequence[str] = ()
    """What to know before the figures are believed."""
    glances_left_out: int = 0
    glances_gone: int = 0


@dataclass(frozen=True)
class Report:
    """Everything the page shows."""

    made: str
    """Date and time, as it shall be printed."""
    version: str
    """Of the pipeline."""
    bag: str
    """The unit that learns: `image`, `case` or `patient`."""
    devices: Sequence[str]
    """Where the backbones and the heads ran."""
    settings: Row
    """Key settings, nested or flat."""
    modalities: Sequence[Modality]
    missing: Sequence[Row] = ()
    """`image`, `reason`: rows of the labels without a file, whose modality nobody can know."""
    ignored: Sequence[Row] = ()
    """`path`, `reason`: what lies below the raw folder and is no image."""
    test_uses: Sequence[Row] = ()
    """Lines of test_uses.tsv, one per opening of a test fold."""


def render(report: Report) -> str:
    """The report as one self-contained HTML page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, interval=interval, p_value=p_value, data_uri=data_uri)
    page = environment.get_template("report.html.j2").render(
        report=report,
        statuses=STATUSES,
        settings=dict(flat(report.settings)),
        sections=[_section(modality) for modality in report.modalities],
        absent=_absent(report),
        odd=_odd(report),
        most_odd=MOST_ODD,
        ignored=report.ignored[:MOST_IGNORED],
        test_uses=report.test_uses[-MOST_TEST_USES:],
    )
    # A name that the file system could not decode must not keep the page from being written.
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def _section(modality: Modality) -> dict[str, Any]:
    """What the template needs about one modality."""
    evaluation = modality.evaluation
    return {
        "modality": modality,
        "weights": weights_source(modality.backbone),
        "random": modality.backbone.get("weights") == "random",
        "status": Counter(row["status"] for row in modality.images),
        "metrics": metrics_table(evaluation) if evaluation else [],
        "folds": folds_table(evaluation) if evaluation else {},
        "pairs": evaluation["pairs"] if evaluation else [],
        "curves": _roc_figures(modality.roc),
        "predictions": modality.predictions[:MOST_PREDICTIONS],
        "predicted": list(dict.fromkeys(name for row in modality.predictions for name in row["probabilities"])),
    }


def _absent(report: Report) -> list[dict[str, str]]:
    """Every image that is not in the results, with its reason: modality by modality, sorted by status."""
    order = list(STATUSES)
    rows = []
    for modality in report.modalities:
        absent = [row for row in modality.images if row["status"] != "done"]
        for row in sorted(absent, key=lambda row: (order.index(row["status"]), row["image"])):
            rows.append(_absent_row(row, modality.name, row["status"]))
    return rows + [_absent_row(row, "", "missing") for row in report.missing]


def _absent_row(row: Row, modality: str, status: str) -> dict[str, str]:
    return {"image": row["image"], "modality": modality, "status": status, "reason": row.get("reason") or ""}


def is_odd(row: Row) -> bool:
    """Whether a reader should look at an image: its resolution is not simply what its file states, or it has notes."""
    source = row.get("mpp_source") or ""
    return bool(row.get("notes")) or (source != "" and source not in MPP_READ)


def _odd(report: Report) -> list[dict[str, str]]:
    """Every odd image with its resolution, where that is from, and its notes; sorted by modality and name."""
    return [
        {
            "image": row["image"],
            "mpp": f"{row['mpp']:.4g}" if row.get("mpp") else "",
            "source": MPP_SOURCES.get(row.get("mpp_source") or "", "read from its file" if row.get("mpp") else ""),
            "notes": row.get("notes") or "",
        }
        for modality in report.modalities
        for row in sorted(modality.images, key=lambda row: row["image"])
        if is_odd(row)
    ]


def weights_source(backbone: Row) -> str:
    """Where the weights of a backbone come from, in words."""
    match backbone.get("weights"):
        case "random":
            return f"RANDOM weights (seed {backbone.get('seed', 0)}): embeddings carry no learnt meaning"
        case "adopted":
            return "features that existed already were read: which model made them, of what, is not known here"
        case "file":
            text = f"weights from the file {PurePosixPath(str(backbone.get('file', ''))).name}"
        case _:
            text = f"weights from the Hugging Face hub, revision {backbone.get('revision', 'unknown')}"
    digest = str(backbone.get("sha256") or "")
    return f"{text} (sha256 {digest[:16]}…)" if digest else text


def metrics_table(evaluation: Row) -> list[dict[str, Any]]:
    """One flat row per head, for the page and for a CSV file.

    Returns:
        Rows with `head`; `auroc` and `balanced_accuracy`, each with `_low`, `_high`, `_method` (of the interval) and
        `_reason` (why something is missing); `patients`, `bags`, and for each class `bags: <class>` and
        `patients: <class>`.
    """
    rows = []
    for head, result in evaluation["heads"].items():
        row: dict[str, Any] = {"head": head}
        for name in ("auroc", "balanced_accuracy"):
            row[name] = result[name]["value"]
            row |= {f"{name}_{part}": result[name][part] for part in ("low", "high", "method", "reason")}
        counts = result["counts"]
        row |= {"patients": counts["patients"], "bags": counts["bags"]}
        for of in ("bags", "patients"):
            counted = zip(evaluation["classes"], counts[f"{of}_per_class"], strict=True)
            row |= {f"{of}: {name}": count for name, count in counted}
        rows.append(row)
    return rows


def folds_table(evaluation: Row) -> dict[str, dict[str, Row]]:
    """The result of each fold (`auroc` and `counts`) by fold, then by head."""
    table: dict[str, dict[str, Row]] = defaultdict(dict)
    for head, result in evaluation["heads"].items():
        for fold in result["folds"]:
            table[str(fold["fold"])][head] = fold
    return dict(table)


def _roc_figures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One figure per positive class, with the curves of all heads."""
    curves: dict[str, dict[str, Any]] = defaultdict(dict)
    for row in rows:
        points = roc_points(row["labels"], row["scores"], row["folds"])
        if len(points[0]):
            curves[row["positive"]][row["head"]] = points
    return [
        {"positive": positive, "svg": roc_svg(heads).encode(), "heads": list(heads)}
        for positive, heads in curves.items()
    ]


def number(value: float | None, reason: str | None = None, digits: int = 2, sign: bool = False) -> str:
    """A figure with two decimals, or `n/a` with the reason why there is none."""
    if value is None or value != value:
        return f"n/a ({reason or 'no reason was given'})"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def interval(row: Row, name: str = "value", sign: bool = False) -> str:
    """A figure with its interval: `0.83 [0.71, 0.93]`.

    Args:
        row: holds the figure.
        name: key of the figure; its ends are in `low` and `high`, or in `<name>_low` and `<name>_high`.
        sign: print a plus.
    """
    prefix = f"{name}_" if f"{name}_low" in row else ""
    low, high, reason = (row.get(prefix + part) for part in ("low", "high", "reason"))
    text = number(row.get(name), reason, sign=sign)
    if text.startswith("n/a"):
        return text
    if low is None or high is None or low != low or high != high:
        return f"{text} [n/a{f': {reason}' if reason else ''}]"
    return f"{text} [{number(low, sign=sign)}, {number(high, sign=sign)}]"


def p_value(value: float | None, reason: str | None = None) -> str:
    """A p-value with three decimals, never printed as zero."""
    return "< 0.001" if value is not None and value < 0.001 else number(value, reason, digits=3)


def data_uri(content: bytes, kind: str) -> str:
    """Content inside the page, as the address of an image."""
    return f"data:{kind};base64,{b64encode(content).decode('ascii')}"


def flat(settings: Row, above: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as `slide.mpp` and value."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
