"""The figures of the README and of reports/figures that concern number formats.

python reports/formats_figures.py
"""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from qsim.cli import main as qsim

OUT = Path(__file__).parent / "figures"

FIGURES = {
    "formats_error.svg": ["formats", "--compare", "e4m3", "e5m2", "int8"],
    "formats_e4m3.svg": ["formats", "e4m3"],
}


def main() -> None:
    OUT.mkdir(exist_ok=True)
    for name, arguments in FIGURES.items():
        result = CliRunner().invoke(qsim, [*arguments, "--plot", str(OUT / name)], catch_exceptions=False)
        if result.exit_code:
            raise SystemExit(result.output)
        print(f"wrote reports/figures/{name}: qsim {' '.join(arguments)} --plot {name}")


if __name__ == "__main__":
    main()
