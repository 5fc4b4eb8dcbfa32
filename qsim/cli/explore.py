"""`qsim explore`: the what-if page, live or as one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qsim.errors import QsimError

from .hardware_options import complete, device_names, model_names
from .verbs import verb

if TYPE_CHECKING:
    from qsim.explore.page import Opened


@verb("explore")
@click.option("--export", "export_to", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write the page as one HTML file that works without this program, and stop.")  # fmt: skip
@click.option("--device", "devices", multiple=True, metavar="NAME", shell_complete=complete(device_names),
              help="Device that the page opens with, or a path to its TOML. Repeatable, up to three.")  # fmt: skip
@click.option("--model", "models", multiple=True, metavar="MODEL", shell_complete=complete(model_names),
              help="Model that the page opens with, or a path to its config.json. Repeatable.")  # fmt: skip
@click.option("--port", type=click.IntRange(1, 65535), metavar="N",
              help="Port of the page on this machine.  [default: a free one]")  # fmt: skip
@click.option("--no-browser", is_flag=True, help="Print the page's address without opening a browser.")
def explore(
    export_to: Path | None, devices: tuple[str, ...], models: tuple[str, ...], port: int | None, no_browser: bool
) -> None:
    """Sliders for every field of a device, schemes, batch and context, with up to three cases side by side: roofline,
    time by operator, speed-up against batch with its flip, memory, tokens per second, expected loss. A second tab shows
    how formats round. The page is served to this machine alone, and every prediction is made here; Ctrl-C stops it.

    \b
    Examples:
      qsim explore
      qsim explore --export what-if.html
      qsim explore --device h200 --device my-chip.toml --model my-model/config.json --no-browser
    """
    from qsim.explore.page import Opened

    opened = Opened.of(devices, models)
    if export_to is not None:
        for flag, given in (("--port", port is not None), ("--no-browser", no_browser)):
            if given:
                raise QsimError(f"{flag} is for the served page: --export writes a file and stops; leave {flag} out")
        from qsim.explore.page import write_page

        size = write_page(export_to, opened)
        click.echo(f"{export_to}: {size / 1e6:.2f} MB, opens without a network")
        return
    _serve(port or 0, no_browser, opened)


def _serve(port: int, no_browser: bool, opened: Opened) -> None:
    import webbrowser

    from qsim.explore.live import Server

    try:
        server = Server(opened, port=port)
    except OSError as error:
        raise QsimError(f"port {port} of this machine cannot be used ({error.strerror}): leave --port out") from error
    with server:
        click.echo(f"{server.url}  (this machine only; Ctrl-C stops it)")
        if not no_browser:
            webbrowser.open(server.url)
        server.serve_forever()
