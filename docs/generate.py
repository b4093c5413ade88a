"""Writes the files that are made from others; with --check says which of them are out of date.

envs/pipeline.yaml from the lock, workflow/schemas/config.schema.json and docs/settings.md from the settings' models.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.config import Config  # noqa: E402

PROJECT = "slide-to-prediction (pyproject.toml)"


def conda_environment() -> str:
    """The environment of the rules: Python, pip, and the pins of the lock that running needs, without the tools."""
    text = (ROOT / "envs/requirements.lock").read_text()
    # A block is a pin with its marker, its hashes, and below `# via` who asked for it.
    blocks = re.findall(
        r"^(\S+==[^\n\\]+?) \\\n(?:    --hash=\S+(?: \\)?\n)+    # via ?((?:.|\n    #)+)", text, re.MULTILINE
    )
    # A package may have two pins, whose markers tell the versions of Python apart.
    pins: dict[str, list[str]] = {}
    asked: dict[str, list[str]] = {}
    for pin, via in blocks:
        name = re.split(r"==|\[", pin)[0]
        pins.setdefault(name, []).append(pin)
        asked.setdefault(name, []).extend(re.findall(r"[^\s#][^\n#]*", via))
    kept = {name for name, by in asked.items() if PROJECT in by}
    while more := {name for name, by in asked.items() if name not in kept and kept & set(by)}:
        kept |= more
    lines = ["# Generated from envs/requirements.lock by `make generate`: do not edit.", "channels:", "  - conda-forge"]
    lines += ["  - nodefaults", "dependencies:", "  - python=3.11", "  - pip", "  - pip:"]
    return "\n".join([*lines, *(f"      - {json.dumps(pin)}" for name in sorted(kept) for pin in pins[name])]) + "\n"


def schema() -> str:
    """The JSON schema of config.yaml."""
    return json.dumps(Config.model_json_schema(), indent=1) + "\n"


def settings_page() -> str:
    """The reference of all settings, a table per section."""
    top = Config.model_json_schema()
    definitions: dict[str, Any] = top["$defs"]
    lines = [
        "# Settings",
        "",
        "Generated from the models of `pipeline/config.py` by `make generate`. Unknown keys are refused.",
        "",
    ]

    def section(title: str, model: dict[str, Any]) -> None:
        lines.extend([f"## {title}", "", model.get("description", "").strip(), ""])
        lines.extend(["| key | type | default | meaning |", "| --- | --- | --- | --- |"])
        below = []
        for key, field in model["properties"].items():
            reference = re.search(r'"#/\$defs/(\w+)"', json.dumps(field))
            if reference:
                below.append((key, definitions[reference[1]]))
            default = "see below" if reference else f"`{json.dumps(field['default'])}`"
            lines.append(f"| `{key}` | {kind(field)} | {default} | {field['description']} |")
        lines.append("")
        for key, found in below:
            section(f"{title}.{key}" if title != "Top level" else key, found)

    section("Top level", top)
    return "\n".join(lines).rstrip() + "\n"


def kind(field: dict[str, Any]) -> str:
    """The type of a setting in words."""
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {field[name]:g}" for name, sign in limits.items() if name in field]
    return " ".join([field.get("type", "section"), *bounds])


FILES = {
    "envs/pipeline.yaml": conda_environment,
    "workflow/schemas/config.schema.json": schema,
    "docs/settings.md": settings_page,
}


def main() -> int:
    """Write or check."""
    check = "--check" in sys.argv[1:]
    stale = []
    for name, make in FILES.items():
        path, text = ROOT / name, make()
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    print(("out of date: " if check else "written: ") + (", ".join(stale) or "nothing"))
    return int(check and bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())
