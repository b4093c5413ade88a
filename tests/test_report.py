"""The report: says what it is given, hides nobody, and lets no tag through."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from pipeline.figures import roc_points, roc_svg
from pipeline.report import Modality, Report, interval, metrics_table, number, p_value, render, weights_source
from pipeline.runners.show import glances_of

SCRIPT, IMAGE = "<script>alert(1)</script>", '"><img src=x>'
NAMES = (SCRIPT, IMAGE, "Größe 名前 \u202eevil", "' onmouseover=alert(1) '", "{{ 7 * 7 }}", "\udcff")
RANDOM = {"model": "resnet18", "weights": "random", "seed": 0}
HUB = {"model": "vit_s", "weights": "hub", "revision": "abc123", "sha256": "f" * 64}


def estimate(
    value: float | None, low: float | None = None, high: float | None = None, reason: str = ""
) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "method": "bootstrap", "left_out": 0, "reason": reason}


def counts(patients: int, *bags: int) -> dict[str, Any]:
    return {"patients": patients, "bags": sum(bags), "bags_per_class": bags, "patients_per_class": bags}


def evaluation(first: str = "benign", second: str = "tumour") -> dict[str, Any]:
    head = {
        "auroc": estimate(0.834, 0.71, 0.93),
        "balanced_accuracy": estimate(0.7, 0.6, 0.8),
        "counts": counts(37, 25, 16),
        "folds": [
            {"fold": 0, "auroc": estimate(0.875, 0.5, 1.0), "counts": counts(8, 5, 3)},
            {"fold": 1, "auroc": estimate(None, reason="one class only"), "counts": counts(7, 7, 0)},
        ],
    }
    pair = {"a": "abmil", "b": "mean", "difference": estimate(-0.051, -0.12, 0.02), "p": 0.164, "counts": counts(37)}
    return {"classes": [first, second], "confidence": 0.95, "heads": {"abmil": head, "mean": head}, "pairs": [pair]}


def learnt(name: str = "slide", **changes: Any) -> Modality:
    """A modality with everything in it."""
    full = Modality(
        name=name,
        backbone=HUB,
        images=[{"image": "a.svs", "status": "done", "reason": ""}],
        counts={
            "patients": 41,
            "bags": 43,
            "labelled": {"benign": 25, "tumour": 16},
            "unlabelled": 2,
            "mixed_patients": 3,
        },
        evaluation=evaluation(),
        roc=[{"head": "abmil", "positive": "tumour", "labels": [0, 1], "scores": [0.2, 0.9], "folds": [0, 0]}],
        predictions=[prediction("new.svs")],
        pictures=[picture("a.svs")],
        glances=[glance("a.svs")],
    )
    return replace(full, **changes)


def prediction(bag: str, **changes: Any) -> dict[str, Any]:
    tumour = {"mean": 0.62, "low": 0.5, "high": 0.75}
    return {"bag": bag, "head": "abmil", "probabilities": {"tumour": tumour}, "in_training": False} | changes


def picture(bag: str) -> dict[str, Any]:
    return {
        "png": b"picture",
        "bag": bag,
        "head": "abmil",
        "fold": 3,
        "label": "tumour",
        "predicted": "tumour",
        "probability": 0.912,
    }


def glance(image: str, **changes: Any) -> dict[str, Any]:
    return {"image": image, "status": "done", "tiles": 1234, "removed": "", "jpeg": b"small"} | changes


def report(*modalities: Modality, **changes: Any) -> Report:
    full = Report(
        made="20 November 2026",
        version="0.1.0",
        bag="image",
        devices=["cpu"],
        settings={"slide": {"mpp": 0.5}, "max_failed": 0.1},
        modalities=modalities,
    )
    return replace(full, **changes)


class Page(HTMLParser):
    """The tags, attributes and text of a page, as a browser would see them."""

    def __init__(self, page: str) -> None:
        """Parse the page."""
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Note text."""
        self.words.append(data)


def rows_of(page: str, section: str) -> list[list[str]]:
    """Cells of all table rows of one section."""
    body = page.split(f'id="{section}"')[1].split("</section>")[0]
    rows = re.findall(r"<tr[ >].*?</tr>", body, re.DOTALL)
    return [[Page(cell).text for cell in re.findall(r"<t[hd][ >].*?</t[hd]>", row, re.DOTALL)] for row in rows]


@pytest.mark.parametrize("name", NAMES)
def test_no_text_from_data_becomes_a_tag_or_an_attribute(name: str) -> None:
    """The same page with harmless text everywhere has exactly the same tags and attribute names."""

    def page(text: str) -> str:
        rows = [
            {"image": text + status, "status": status, "reason": text, "mpp_source": text, "notes": text, "mpp": 0.5}
            for status in ("done", "empty", "failed", "missing", "excluded", "waiting")
        ]
        modality = learnt(
            images=rows,
            backbone={"model": text, "weights": "hub", "revision": text, "sha256": text},
            counts={"patients": 1, "bags": 1, "labelled": {text: 1}, "unlabelled": 1, "mixed_patients": 0},
            evaluation=evaluation(text, "tumour"),
            roc=[{"head": text, "positive": text, "labels": [0, 1], "scores": [0, 1], "folds": [0, 0]}],
            predictions=[prediction(text, head=text, probabilities={text: {"mean": 0.5, "low": 0, "high": 1}})],
            pictures=[picture(text) | {"head": text, "label": text, "predicted": text, "fold": text}],
            glances=[glance(text, removed=text)],
        )
        return render(
            report(
                modality,
                learnt(
                    "series",
                    evaluation=None,
                    nothing_learnt=text,
                    backbone={"model": text, "weights": "file", "file": text},
                ),
                made=text,
                version=text,
                devices=[text],
                settings={text: {text: text}},
                missing=[{"image": text, "reason": text}],
                ignored=[{"path": text, "reason": text}],
                test_uses=[{text: text}],
            )
        )

    def shape(page: str) -> list[tuple[str, list[str]]]:
        return [(tag, list(attributes)) for tag, attributes in Page(page).tags]

    found = page(name)
    assert shape(found) == shape(page("harmless"))
    assert SCRIPT not in found and IMAGE not in found
    found.encode("utf-8")


def test_names_are_shown_as_they_are() -> None:
    rows = [{"image": SCRIPT, "status": "failed", "reason": "Größe 名前"}]
    assert f"{SCRIPT} slide failed Größe 名前" in Page(render(report(learnt(images=rows)))).text


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing() -> None:
    tags = Page(render(report(learnt(), learnt("series")))).tags
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in tags}
    for tag, attributes in tags:
        assert not [key for key in attributes if key.startswith("on")]
        if tag == "img":
            kinds = ("png", "jpeg", "svg+xml")
            assert (attributes["src"] or "").startswith(tuple(f"data:image/{kind};base64," for kind in kinds))
        if tag == "a":
            assert (attributes["href"] or "").startswith("#")


def test_every_link_at_the_top_leads_somewhere() -> None:
    tags = Page(render(report())).tags
    anchors = {attributes["id"] for _, attributes in tags if "id" in attributes}
    links = {(attributes["href"] or "")[1:] for tag, attributes in tags if tag == "a"}
    assert (
        {"cohort", "glances", "resolution", "metrics", "predictions", "attention", "absent", "test-folds"}
        <= links
        <= anchors
    )


def test_the_same_report_is_the_same_page() -> None:
    assert render(report(learnt())) == render(report(learnt()))


def test_research_use_and_random_weights_are_loud() -> None:
    page = render(report(learnt(backbone=RANDOM), learnt("series", backbone=HUB)))
    header = Page(page.split("</header>")[0]).text
    assert "For research use only" in header
    assert "Slides: resnet18, RANDOM weights (seed 0): embeddings carry no learnt meaning" in header
    assert "CT series:" not in header


@pytest.mark.parametrize(
    ("backbone", "text"),
    [
        (RANDOM, "RANDOM weights (seed 0): embeddings carry no learnt meaning"),
        (HUB, "weights from the Hugging Face hub, revision abc123 (sha256 ffffffffffffffff…)"),
        ({"weights": "file", "file": "/home/someone/uni.safetensors"}, "weights from the file uni.safetensors"),
    ],
)
def test_the_source_of_the_weights_in_words(backbone: dict[str, Any], text: str) -> None:
    assert weights_source(backbone) == text


def test_images_are_counted_by_status() -> None:
    given = {"done": 5, "empty": 1, "failed": 2, "missing": 3, "excluded": 4, "waiting": 6}
    images = [{"image": f"{s}{i}", "status": s, "reason": "r"} for s, n in given.items() for i in range(n)]
    rows = {row[0].split()[0]: row[1] for row in rows_of(render(report(learnt(images=images))), "cohort")}
    assert {status: int(rows[status]) for status in given} == given
    assert rows["images"] == "21"


def test_patients_bags_and_labels_are_counted() -> None:
    rows = rows_of(render(report(learnt())), "cohort")[-6:]
    assert rows == [
        ["patients", "41"],
        ["bags", "43"],
        ["labelled benign", "25"],
        ["labelled tumour", "16"],
        ["unlabelled", "2"],
        ["patients whose bags carry different labels", "3"],
    ]


def test_nobody_vanishes_silently() -> None:
    """Every image that is not in the results is a row, however many there are, with its reason."""
    images = [{"image": f"i{n}", "status": "failed", "reason": f"reason {n}"} for n in range(500)]
    images += [{"image": "late", "status": "waiting", "reason": ""}, {"image": "fine", "status": "done", "reason": ""}]
    page = render(report(learnt(images=images), missing=[{"image": "gone", "reason": "labels line 7"}]))
    rows = rows_of(page, "absent")[1:]
    assert len(rows) == 502
    assert ["i499", "slide", "failed", "reason 499"] in rows
    assert ["late", "slide", "waiting", "changed too recently, or not all there: waits for the next run"] in rows
    assert rows[-1] == ["gone", "unknown", "missing", "labels line 7"]


def test_fifty_ignored_paths_are_shown_then_a_count() -> None:
    ignored = [{"path": f"file{n}.txt", "reason": "is no slide"} for n in range(53)]
    page = render(report(ignored=ignored))
    assert len(rows_of(page, "absent")) == 51
    assert "and 3 more." in Page(page).text


def section_of(page: str, name: str) -> Page:
    return Page(f'<section id="{name}"' + page.split(f'<section id="{name}"')[1].split("</section>")[0])


def test_a_glance_says_image_tiles_status_and_what_was_removed() -> None:
    glances = [glance("b.svs", removed="blurred 12, pen or marker 3"), glance("c.svs", status="failed")]
    found = section_of(render(report(learnt(glances=glances))), "glances")
    assert "b.svs 1234 tiles, done blurred 12, pen or marker 3" in found.text
    assert "c.svs 1234 tiles, failed" in found.text
    images = [attributes for tag, attributes in found.tags if tag == "img"]
    assert [(image["src"], image["alt"]) for image in images] == [
        ("data:image/jpeg;base64,c21hbGw=", "Choice of tiles of b.svs"),
        ("data:image/jpeg;base64,c21hbGw=", "Choice of tiles of c.svs"),
    ]


def test_pictures_that_are_not_shown_are_counted_and_the_page_says_where_they_are() -> None:
    text = section_of(render(report(learnt(glances_left_out=140, glances_gone=2))), "glances").text
    assert "Shown: 1, first those of images listed under resolution and notes ; 140 more are in their files." in text
    assert "2 could not be shown: their files are gone." in text
    assert "PNG files below results/tile, named in the column picture of catalog.tsv" in text


def test_a_report_without_pictures_says_so() -> None:
    text = section_of(render(report(learnt(glances=[]), learnt("series", glances=[]))), "glances").text
    assert "No picture: none was made of any image." in text
    assert "Slides CT series" not in text


def test_every_image_whose_resolution_was_not_simply_read_is_listed_with_its_origin() -> None:
    def image(name: str, **facts: Any) -> dict[str, Any]:
        return {"image": name, "status": "done", "reason": ""} | facts

    images = [
        image("z.svs", mpp=0.5, mpp_source="labels", notes="mpp 0.25 is stated where the file says 0.5"),
        image("a.svs", mpp=0.46789, mpp_source="property", notes=""),
        image("b.svs", mpp=0.5, mpp_source="tiff", notes="the file also says mpp 0.3"),
        image("c.svs", mpp=1.0, mpp_source="objective", notes=""),
        image("d.svs", mpp=0.50001, mpp_source="config"),
        image("e.svs", mpp=0.5, mpp_source="ome"),
        image("f.svs", status="failed", mpp="", mpp_source="", notes=""),
    ]
    series = learnt("series", images=[image("s1", notes="rescale type US"), image("s2", notes="")])
    rows = rows_of(render(report(learnt(images=images), series)), "resolution")
    assert rows[1:] == [
        ["b.svs", "0.5", "read from its file", "the file also says mpp 0.3"],
        ["c.svs", "1", "derived from the power of the objective", ""],
        ["d.svs", "0.5", "stated in the settings (slide.native_mpp)", ""],
        ["z.svs", "0.5", "stated in the labels", "mpp 0.25 is stated where the file says 0.5"],
        ["s1", "", "", "rescale type US"],
    ]


def test_nothing_odd_about_any_resolution_is_said_too() -> None:
    assert "Nothing to explain" in section_of(render(report(learnt())), "resolution").text


def test_sixty_pictures_are_read_odd_images_first_and_lost_ones_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "tiles.png"
    Image.new("RGB", (300, 200), (230, 150, 190)).save(file)
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no picture")
    row = {"status": "done", "instances": 5, "mpp_source": "property", "picture": str(file)}
    rows = [{**row, "image": f"i{n:03d}", "removed": "blurred 2"} for n in range(70)]
    rows[66] |= {"mpp_source": "labels"}
    rows[68] |= {"notes": "a note"}
    rows[1] |= {"picture": str(tmp_path / "gone.png")}
    rows[2] |= {"picture": str(damaged)}
    rows[3] |= {"picture": ""}
    found = glances_of("slide", rows)
    names = [glance["image"] for glance in found["glances"]]
    assert names[:4] == ["i066", "i068", "i000", "i004"] and names[-1] == "i060" and len(names) == 60
    assert (found["glances_gone"], found["glances_left_out"]) == (2, 7)
    first = found["glances"][0]
    assert (first["status"], first["tiles"], first["removed"]) == ("done", 5, "blurred 2")
    assert Image.open(BytesIO(first["jpeg"])).size == (180, 120)


def test_metrics_come_with_interval_patients_and_bags() -> None:
    rows = rows_of(render(report(learnt())), "metrics")
    assert rows[1] == ["abmil", "0.83 [0.71, 0.93]", "", "0.70 [0.60, 0.80]", "", "37", "41", "25 (25)", "16 (16)"]


def test_a_fold_without_auroc_says_why() -> None:
    rows = rows_of(render(report(learnt())), "metrics")
    assert ["0", "0.88 [0.50, 1.00]", "0.88 [0.50, 1.00]", "8", "8"] in rows
    assert ["1", "n/a (one class only)", "n/a (one class only)", "7", "7"] in rows


def test_pairs_come_with_interval_and_p() -> None:
    rows = rows_of(render(report(learnt())), "metrics")
    assert rows[-1] == ["abmil − mean", "−0.05 [−0.12, +0.02]", "0.164"]


def test_one_row_of_metrics_per_head_holds_plain_figures() -> None:
    rows = metrics_table(evaluation())
    assert [row["head"] for row in rows] == ["abmil", "mean"]
    assert rows[0] == {
        "head": "abmil",
        "auroc": 0.834,
        "auroc_low": 0.71,
        "auroc_high": 0.93,
        "auroc_method": "bootstrap",
        "auroc_reason": "",
        "balanced_accuracy": 0.7,
        "balanced_accuracy_low": 0.6,
        "balanced_accuracy_high": 0.8,
        "balanced_accuracy_method": "bootstrap",
        "balanced_accuracy_reason": "",
        "patients": 37,
        "bags": 41,
        "bags: benign": 25,
        "bags: tumour": 16,
        "patients: benign": 25,
        "patients: tumour": 16,
    }


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"value": 0.834, "low": 0.71, "high": 0.93}, "0.83 [0.71, 0.93]"),
        ({"value": None, "reason": "one class only"}, "n/a (one class only)"),
        ({"value": float("nan"), "reason": ""}, "n/a (no reason was given)"),
        ({"value": 0.5, "low": None, "high": None, "reason": "one patient"}, "0.50 [n/a: one patient]"),
        ({}, "n/a (no reason was given)"),
    ],
)
def test_a_missing_figure_says_why(row: dict[str, Any], text: str) -> None:
    assert interval(row) == text


def test_small_p_values_are_never_zero() -> None:
    assert [p_value(p) for p in (0.0, 0.0009, 0.05, 1.0)] == ["< 0.001", "< 0.001", "0.050", "1.000"]
    assert p_value(None, "one patient") == "n/a (one patient)"


def test_a_minus_is_a_minus_and_nothing_in_a_reason_is_changed() -> None:
    assert number(-0.25) == "\N{MINUS SIGN}0.25"
    assert number(None, "leave-one-out") == "n/a (leave-one-out)"


def test_predictions_show_the_spread_over_folds_and_flag_known_patients() -> None:
    predictions = [prediction("new.svs"), prediction("known.svs", in_training=True)]
    rows = rows_of(render(report(learnt(predictions=predictions))), "predictions")
    assert rows[1:] == [
        ["new.svs", "abmil", "0.62 (0.50–0.75)", ""],
        ["known.svs", "abmil", "0.62 (0.50–0.75)", "patient was in training"],
    ]


def test_two_hundred_predictions_are_shown_then_a_hint() -> None:
    page = render(report(learnt(predictions=[prediction(f"b{n}") for n in range(207)])))
    assert len(rows_of(page, "predictions")) == 201
    assert "7 more rows: see predictions.csv." in Page(page).text


def test_captions_say_head_fold_label_probability_and_scale() -> None:
    caption = (
        "a.svs : head abmil , test fold 3; label tumour , probability of tumour 0.91. Attention as N·a, uniform = 1."
    )
    assert caption in Page(render(report(learnt()))).text


def test_without_labels_the_page_says_why_nothing_was_learnt() -> None:
    modality = Modality("slide", HUB, [{"image": "a", "status": "done"}], nothing_learnt="there is no table of labels")
    text = Page(render(report(modality))).text
    assert (
        text.count("nothing was learnt: there is no table of labels")
        + text.count("Nothing was learnt: there is no table of labels")
        == 3
    )
    assert "No test fold was opened" in text


def test_a_run_without_images_has_a_report() -> None:
    assert "No image was found" in Page(render(report())).text


def test_openings_of_test_folds_are_counted_and_the_last_fifty_shown() -> None:
    page = render(report(learnt(), test_uses=[{"time": f"t{n}", "head": "abmil"} for n in range(60)]))
    assert "Test folds were opened 60 times so far." in Page(page).text
    rows = rows_of(page, "test-folds")
    assert rows[0] == ["time", "head"] and rows[1] == ["t10", "abmil"] and len(rows) == 51


def test_settings_are_listed_flat() -> None:
    assert rows_of(render(report()), "settings") == [["slide.mpp", "0.5"], ["max_failed", "0.1"]]


def area(points: tuple[np.ndarray, np.ndarray]) -> float:
    return float(np.trapezoid(points[1], points[0]))


def test_a_curve_steps_up_at_positives_and_right_at_negatives() -> None:
    """From the highest score down: positive, negative, positive, negative."""
    false_positive, true_positive = roc_points([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1], [0, 0, 0, 0])
    corners = list(zip(false_positive.tolist(), true_positive.tolist(), strict=True))
    assert list(dict.fromkeys(corners)) == [(0, 0), (0, 0.5), (0.5, 0.5), (0.5, 1), (1, 1)]


def test_tied_scores_make_a_slanted_line() -> None:
    assert area(roc_points([1, 0], [0.5, 0.5], [0, 0])) == 0.5


def test_scores_of_different_folds_are_never_compared() -> None:
    """Each fold is in perfect order, though the positive of the second scores below the negative of the first."""
    assert area(roc_points([1, 0, 1, 0], [0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1])) == 1


def test_the_area_is_the_share_of_ordered_pairs_within_folds() -> None:
    """Fold 0: 1 of 2 pairs in order; fold 1: 3 of 4; together 4 of 6, where the mean of the areas would be 0.625."""
    labels = [1, 0, 0, 1, 1, 0, 0]
    scores = [0.5, 0.9, 0.1, 0.9, 0.4, 0.6, 0.2]
    assert area(roc_points(labels, scores, [0, 0, 0, 1, 1, 1, 1])) == pytest.approx(4 / 6)


def test_folds_with_one_class_draw_no_curve() -> None:
    assert area(roc_points([1, 0, 1, 1], [0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1])) == 1
    assert len(roc_points([1, 1], [0.1, 0.2], [0, 0])[0]) == 0


def test_a_figure_is_valid_svg_and_the_same_twice() -> None:
    curves = {"abmil": roc_points([1, 0], [0.9, 0.1], [0, 0]), "$x^{": roc_points([0, 1], [0.9, 0.1], [0, 0])}
    picture = roc_svg(curves)
    assert ElementTree.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"
    assert picture == roc_svg(curves)
