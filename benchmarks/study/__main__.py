"""`python -m benchmarks.study`: do what is left of the study, and draw its page.

Ctrl-C stops it; the same command goes on where it was.
"""

import argparse
import sys
from pathlib import Path

import click

from benchmarks.study.execute import Study
from benchmarks.study.page import write_page
from benchmarks.study.results import RESULTS, read_lines
from benchmarks.study.runs import plan
from benchmarks.study.scales import FIRST, SCALES
from benchmarks.study.sets import make_sets
from pipelines.command.failures import clear_errors
from pipelines.command.progress import say
from unic_cache.errors import ConfigError
from unic_cache.files.local import LocalFolder


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and do what it asks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("--scale", choices=SCALES, default=FIRST, help=f"how large (default: {FIRST})")
    parser.add_argument(
        "--work", type=Path, default=Path("study"), help="folder of packages, caches and runs (default: study)"
    )
    parser.add_argument("--only", default="", metavar="PREFIX", help="only runs whose names begin so, such as cache/")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="file of the results (default: the committed one)"
    )
    parser.add_argument("--page", action="store_true", help="only draw the page again")
    parser.add_argument("--list", action="store_true", help="only list the runs of the plan, in order")
    options = parser.parse_args(arguments)
    try:
        with clear_errors():
            work(options)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)


def work(options: argparse.Namespace) -> None:
    """List, draw, or run and draw; the page is that of the committed results alone."""
    scale = SCALES[options.scale]
    lines = read_lines(options.results)
    if options.list:
        for run in plan(scale, lines):
            click.echo(f"{run.name} {run.seed}")
        return
    if not options.page:
        claim_folder(options.work, scale.name)
        sets = make_sets(options.work, scale.images, scale.labelled_images, say)
        try:
            done = Study(scale, options.work, options.results, sets).run_all(options.only)
        finally:
            draw(options)
        say(f"study: {done} runs done, none left{f' of {options.only}' if options.only else ''}")
        return
    draw(options)


def claim_folder(folder: Path, scale: str) -> None:
    """Write the scale's name into the folder. ConfigError if it holds another scale's caches and runs."""
    file = folder / "scale"
    if file.exists() and (other := file.read_text().strip()) != scale:
        raise ConfigError(f"{folder} holds the study at scale {other}; give --work another folder for scale {scale}")
    LocalFolder(folder).replace(file.name, f"{scale}\n".encode())


def draw(options: argparse.Namespace) -> None:
    """The page, if the results are the committed ones."""
    if options.results.resolve() == RESULTS:
        write_page(SCALES[options.scale], read_lines(options.results))


if __name__ == "__main__":
    main()
