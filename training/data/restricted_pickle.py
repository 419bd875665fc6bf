"""
Pickles of plain values, read without running anything.

A pickle may name any function and have it called while it is read. Published annotations need none of that: they are
lists, dictionaries, numbers and strings, which the format writes without naming anything.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NoReturn

# What the unpickler raises for bytes that are no pickle, or one that is cut off.
_DAMAGE = (EOFError, AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)


class _PlainUnpickler(pickle.Unpickler):
    """Every way to a value that is not plain starts with one of these two calls; both refuse."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for the external object {pid!r}")


def load_restricted_pickle(path: str | Path) -> Any:
    """
    Read a pickle that holds plain containers, numbers and strings, of any protocol. Strings of Python 2 are taken as
    Latin-1 and become text.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it asks for anything else, or is damaged. Nothing of it has been executed then.
    """
    with open(path, "rb") as file:
        try:
            return _PlainUnpickler(file, encoding="latin-1").load()
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{path} is refused: {error}. Only pickles of plain values are read; get the file from its publisher,"
                " or store its records as JSON."
            ) from error
        except _DAMAGE as error:
            raise ValueError(f"{path} is not a complete pickle ({type(error).__name__}: {error})") from error
