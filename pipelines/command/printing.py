"""Output for people: complete in a pipe or a job's log, and in any encoding.

Results go to stdout by `results`, remarks to stderr by `progress.say`.
"""

import codecs
import sys

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table

WIDE = 10_000  # columns, without a terminal
LEAST_NAME = 12  # columns left for a name on a narrow terminal
PLAIN = {"─": "-", "━": "-", "╺": "-", "╸": "-", "│": "|", "…": "...", "±": "+-", "²": "2"}
ERRORS = "unic-cache-plain"


def results() -> Console:
    """The console for results, unlimited in width without a terminal, whatever COLUMNS says."""
    console = Console(highlight=False, markup=False, emoji=False)  # as in py:robot:factory
    if not sys.stdout.isatty():
        console.width = WIDE
    return console


def print_table(console: Console, table: Table) -> None:
    """Print a table; on a narrow terminal names (columns that may wrap) are folded, numbers never."""
    whole = Measurement.get(console, console.options.update(width=WIDE), table).maximum
    spare = sum(max(_width(column) - LEAST_NAME, 0) for column in table.columns if not column.no_wrap)
    before, console.width = console.width, max(console.width, whole - spare)
    console.print(table, crop=False)
    console.width = before


def _width(column: Column) -> int:
    return max(cell_len(str(cell)) for cell in (column.header, *column.cells))


def print_in_any_encoding() -> None:
    """Print in ASCII what the encoding of stdout or stderr lacks, and undecodable bytes of names as \\xff."""
    codecs.register_error(ERRORS, _plainly)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=ERRORS)


def _plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(PLAIN.get(letter) or _escaped(letter) for letter in lacking), error.end


def _escaped(letter: str) -> str:
    byte = ord(letter) - 0xDC00
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else letter.encode("ascii", "backslashreplace").decode()
