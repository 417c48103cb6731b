"""Which classes of a model are wanted."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from detr_export.runtimes.errors import InputError

_MOST_NAMED = 8  # classes that a message lists


def require_classes(names: Iterable[str], id2label: Mapping[int, str]) -> frozenset[str]:
    """Refuses names that are no classes of a model. Upper and lower case differ.

    Args:
        names: of the wanted classes.
        id2label: names of the model's classes.

    Returns:
        The names.

    Raises:
        InputError: there is no such class, or no name was given; says which classes are like it.
    """
    wanted = frozenset(names)
    known = list(dict.fromkeys(id2label.values()))
    if not wanted:
        raise InputError("no classes were named; expected at least one, or leave classes (--classes) out for all of them")
    for name in sorted(wanted):
        if name not in known:
            raise InputError(f"the model has no class {name!r}; {_suggestion(name, known)}")
    return wanted


def split_names(given: Iterable[str], id2label: Mapping[int, str]) -> list[str]:
    """Class names as they are typed: each text is one name, or several between commas."""
    known = set(id2label.values())
    split = [part for text in given for part in ([text] if text in known else text.split(","))]
    return [part.strip() for part in split if part.strip()]


def _suggestion(name: str, known: list[str]) -> str:
    spelled = {other.casefold(): other for other in reversed(known)}
    close = [spelled[other] for other in difflib.get_close_matches(name.casefold(), spelled, _MOST_NAMED, 0.6)]
    if close:
        return f"similar classes are {', '.join(close)}"
    listed = ", ".join(known[:_MOST_NAMED]) + (", ..." if len(known) > _MOST_NAMED else "")
    return f"its {len(known)} classes are {listed}"
