"""The examples of CONTRIBUTING as they stand there, and a package that declares them by its entry points."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def blocks(title: str, language: str) -> list[str]:
    """The examples in a language below a heading of CONTRIBUTING."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    _, heading, rest = text.partition(f"## {title}\n")
    assert heading, f"CONTRIBUTING has no heading {title!r}"
    found = re.findall(rf"```{language}\n(.*?)```", rest.partition("\n## ")[0], re.DOTALL)
    assert found, f"no {language} below {title!r}"
    return found


def declare(folder: Path, entries: str, name: str = "my_package") -> None:
    """What an installer leaves in `folder` for the entry points of a pyproject.toml."""
    groups = tomllib.loads(entries)["project"]["entry-points"]
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in of.items()) for group, of in groups.items()]
    (info / "entry_points.txt").write_text("".join(lines))


def install(folder: Path, title: str, group: str) -> None:
    """The one module of a guide at the place that its entry point, the only one of a group, names; and that entry."""
    entries = blocks(title, "toml")[0]
    groups = tomllib.loads(entries)["project"]["entry-points"]
    assert list(groups) == [group]
    of = groups[group]
    ((_, value),) = of.items()
    file = folder.joinpath(*value.partition(":")[0].split(".")).with_suffix(".py")
    file.parent.mkdir()
    (file.parent / "__init__.py").touch()
    file.write_text(blocks(title, "python")[0], encoding="utf-8")
    declare(folder, entries)
