"""Who may import whom, kept true by reading every module's imports.

The tables below are the documentation: a new module gets its place in `LINES`, or this test fails.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pipeline"

LINES: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("runners.*",),
    ("report", "figures", "training", "evaluation", "explain", "intervals", "qc", "contact_sheet", "synthetic.*"),
    (
        "tiling",
        "embedding",
        "feeding",
        "bags",
        "splits",
        "heads.*",
        "feature_files",
        "feature_formats",
        "feature_tables",
        "feature_export",
        "dicom_sort",
        "dicom_table",
    ),
    ("images.*", "shards", "backbone", "device", "resizing", "weights", "partial", "quality"),
    ("plan", "names", "cohort", "raw", "feature_scan", "companions", "store", "chunks", "versions"),
    ("config", "image_settings", "presets", "model_presets"),
    ("errors", "geometry", "timing", "windows"),
)
"""A module imports from lines below its own only. `x.*` is the package x and all modules in it."""

SAME_LINE: dict[str, set[str]] = {
    # Runners share a job, its tables, and what earlier stages have written.
    "runners.tables": {"runners.job"},
    "runners.cohort": {"runners.job", "runners.tables"},
    "runners.learn": {"runners.job", "runners.tables"},
    "runners.outline": {"runners.job", "runners.tables"},
    "runners.raw_images": {"runners.job"},
    "runners.shard": {"runners.job", "runners.raw_images"},
    "runners.embed": {"runners.job", "runners.raw_images", "runners.shard"},
    "runners.features": {"runners.job", "runners.raw_images", "runners.shard", "runners.tables"},
    "runners.weights": {"runners.job"},
    "runners.show": {"runners.job", "runners.tables", "runners.cohort", "runners.learn", "runners.shard"},
    "runners.tools": {"runners.job", "runners.tables"},
    # The report draws its curves.
    "report": {"figures"},
    "dicom_sort": {"dicom_table"},
    "contact_sheet": {"qc"},
    "feature_files": {"feature_formats", "feature_tables"},
    "feature_tables": {"feature_formats"},
    "feature_export": {"feature_formats"},
    # The model's side of embedding knows the reader's.
    "embedding": {"feeding"},
    # A backbone is a model with its weights, what it is shown, and where it runs.
    "backbone": {"device", "resizing", "weights"},
    "evaluation": {"intervals"},
    "synthetic.*": {"synthetic.*"},
    # Heads know what all heads share; the list of heads knows the heads.
    "heads": {"heads.*"},
    "heads.*": {"heads.base"},
    # `open_image` chooses the reader; a reader knows the protocol.
    "images": {"images.slide", "images.series", "images.selection"},
    "images.slide": {"images", "images.*"},
    "images.tissue": {"images.segmenter"},
    "images.pyramid": {"images.content"},
    "images.jpeg_tiles": {"images.pyramid"},
    "images.jpeg_levels": {"images.jpeg_tiles", "images.pyramid"},
    "images.colour": {"images.pyramid"},
    "images.sampling": {"images.view"},
    # A series: its files, what is none of it, the choice, the order, the values, and the volume they make.
    "images.dicom_file": {"images.elements"},
    "images.exclusions": {"images.dicom_file", "images.elements"},
    "images.dicom": {"images.dicom_file", "images.elements", "images.exclusions", "images.vocabulary"},
    "images.selection": {"images.dicom", "images.elements", "images.vocabulary"},
    "images.stacking": {"images.dicom", "images.gaps"},
    "images.decoding": {"images.dicom", "images.dicom_file", "images.elements"},
    "images.hounsfield": {"images.dicom"},
    "images.repeats": {"images.decoding", "images.dicom", "images.elements", "images.stacking"},
    "images.record": {"images.decoding", "images.dicom", "images.elements", "images.stacking"},
    "images.volume": {
        "images.decoding",
        "images.dicom",
        "images.elements",
        "images.hounsfield",
        "images.record",
        "images.repeats",
        "images.selection",
        "images.stacking",
    },
    "images.series": {"images", "images.hounsfield", "images.volume"},
    # The plan is made of what is there, what it is called and what it is labelled.
    "plan": {"raw", "feature_scan", "cohort", "names", "store", "versions"},
    "feature_scan": {"raw"},
    "cohort": {"raw", "feature_scan"},
    "store": {"chunks"},
    "names": {"raw", "cohort", "store"},
    "raw": {"companions"},
    "config": {"image_settings"},
    "image_settings": {"presets", "model_presets"},
}
"""Modules on one line do not import each other, but for these."""

NARROWER: dict[str, set[str]] = {
    "cli": {"errors"},  # and by name the one runner that a command needs
    "heads.base": set(),
    "heads.abmil": {"heads.base"},
    "heads.mean": {"heads.base"},
    "explain": set(),
    "figures": set(),
    "evaluation": {"config", "intervals"},
    "intervals": set(),
    "versions": set(),
}
"""Modules that may know less than their line."""

LIGHT = (
    "cli",
    "runners.*",
    "shards",
    "plan",
    "names",
    "cohort",
    "raw",
    "feature_scan",
    "companions",
    "store",
    "versions",
    "config",
    "image_settings",
    "presets",
    "model_presets",
    "weights",
    "chunks",
    "timing",
    "windows",
    "errors",
)
"""Imported before anybody knows whether there is work: nothing heavy while they are imported."""

HEAVY = {
    "google_crc32c",
    "h5py",
    "matplotlib",
    "numpy",
    "openslide",
    "PIL",
    "psutil",
    "pydicom",
    "safetensors",
    "timm",
    "torch",
    "zarr",
}

TYPES_ONLY = {("names", "plan")}
"""Imports for annotations alone may go up: they do not exist when the program runs."""


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = [name for name in SOURCES if name]  # the package itself holds its version and nothing else


def fits(pattern: str, name: str) -> bool:
    return pattern == name or (pattern.endswith(".*") and f"{name}.".startswith(pattern[:-1]))


def line_of(name: str) -> int:
    (found,) = [number for number, line in enumerate(LINES) if any(fits(pattern, name) for pattern in line)]
    return found


def for_types(node: ast.AST) -> bool:
    """Whether this is an `if TYPE_CHECKING:` block."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def statements(tree: ast.AST, lazily: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports of a module that exist when it runs; with `lazily`, those inside functions too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not for_types(node) and (lazily or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield from statements(node, lazily)


def imports(source: str, lazily: bool = True) -> set[str]:
    """Full names of the modules that a source imports."""
    found = set()
    for node in statements(ast.parse(source), lazily):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        assert node.level == 0, f"line {node.lineno}: imports are written out in full"
        for alias in node.names:
            inside = f"{node.module}.{alias.name}"
            found.add(inside if inside.removeprefix("pipeline.") in SOURCES else str(node.module))
    return found


def ours(name: str, lazily: bool = True) -> set[str]:
    """The modules of the package that one of them imports, without `pipeline.` before their names."""
    found = imports(SOURCES[name].read_text(encoding="utf-8"), lazily)
    return {module.removeprefix("pipeline.") for module in found if module.startswith("pipeline.")}


def test_the_reader_of_imports_sees_them_all() -> None:
    source = """
import os, torch.nn
from pipeline import plan
from pipeline.heads import abmil, Head
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import zarr
class A:
    import numpy
def f():
    with open("x"):
        import snakemake
"""
    everything = {"os", "torch.nn", "pipeline.plan", "pipeline.heads.abmil", "pipeline.heads", "typing", "numpy"}
    assert imports(source, lazily=False) == everything
    assert imports(source) == everything | {"snakemake"}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_one_place(name: str) -> None:
    places = [line for line in LINES if any(fits(pattern, name) for pattern in line)]
    assert len(places) == 1, f"pipeline.{name} stands in {len(places)} lines of LINES"


def test_the_tables_name_modules_that_exist() -> None:
    named = {pattern for line in LINES for pattern in line} | set(LIGHT) | set(NARROWER) | set(SAME_LINE)
    named |= set().union(*SAME_LINE.values(), *NARROWER.values())
    assert [pattern for pattern in sorted(named) if not any(fits(pattern, name) for name in MODULES)] == []


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name: str) -> None:
    mine = line_of(name)
    beside = set().union(*(of for pattern, of in SAME_LINE.items() if fits(pattern, name)))
    for other in ours(name):
        theirs = line_of(other)
        assert theirs >= mine, f"pipeline.{name} imports pipeline.{other}, which stands above it"
        allowed = theirs > mine or any(fits(pattern, other) for pattern in beside)
        assert allowed, f"pipeline.{name} imports pipeline.{other}, which stands beside it"


@pytest.mark.parametrize("name", NARROWER)
def test_some_modules_know_less_than_their_line(name: str) -> None:
    assert ours(name) <= NARROWER[name]


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("heads.")])
def test_a_head_needs_torch_and_the_base_only(name: str) -> None:
    """So that a published method is one file that can be read, and taken, alone."""
    found = imports(SOURCES[name].read_text(encoding="utf-8"))
    others = {module.split(".")[0] for module in found} - set(sys.stdlib_module_names)
    assert others <= {"torch", "pipeline"}
    assert ours(name) <= {"heads.base"}


@pytest.mark.parametrize("name", SOURCES)
def test_no_module_knows_snakemake(name: str) -> None:
    assert not any(module.split(".")[0] == "snakemake" for module in imports(SOURCES[name].read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", [name for name in MODULES if any(fits(pattern, name) for pattern in LIGHT)])
def test_light_modules_import_nothing_heavy_while_they_are_imported(name: str) -> None:
    found = imports(SOURCES[name].read_text(encoding="utf-8"), lazily=False)
    assert not {module.split(".")[0] for module in found} & HEAVY
    for other in ours(name, lazily=False):
        assert any(fits(pattern, other) for pattern in LIGHT), f"pipeline.{other} is not light"


def test_pictures_that_carry_names_are_never_opened() -> None:
    """Label and macro images of slides show what is written on the glass."""
    assert [name for name in SOURCES if "associated" in SOURCES[name].read_text(encoding="utf-8")] == []


def test_imports_that_go_up_are_for_types_alone() -> None:
    for name, other in TYPES_ONLY:
        assert other not in ours(name)
        assert f"from pipeline.{other} import" in SOURCES[name].read_text(encoding="utf-8")


def test_only_one_module_chooses_between_the_readers() -> None:
    """After `open_image` nothing knows which modality an image has."""
    choosing = [name for name in MODULES if ours(name) & {"images.slide", "images.series"}]
    assert choosing == ["images"]


@pytest.mark.parametrize("name", SOURCES)
def test_a_module_fits_in_a_head(name: str) -> None:
    assert len(SOURCES[name].read_text(encoding="utf-8").splitlines()) <= 400
