"""What users say of labels and seeds, turned into class indices and whole numbers."""

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

MOST_NUMBERS = 10_000_000  # seeds in one call, at most


def class_index(label: Any, classes: int, names: Sequence[str]) -> int | None:
    """The class index of an index or a name, checked; None, and no class, stay None.

    Raises ValueError, naming the classes there are.
    """
    if label is None:
        return None
    if isinstance(label, str) and label in names:
        return names.index(label)
    number = whole(label)
    if number is not None and 0 <= number <= classes:
        return number if number < classes else None
    if not classes:
        raise ValueError(f"label {label!r}: this model was trained without classes")
    named = f" ({', '.join(names[:12])})" if names else ""
    raise ValueError(f"label {label!r}: choose from 0 to {classes - 1}{named}")


def parse_numbers(option: str, text: str, most: int = MOST_NUMBERS) -> list[int]:
    """ "0-3,7" to [0, 1, 2, 3, 7], ``most`` of them. Raises ValueError, naming the option."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"{option} {text}: write whole numbers and ranges, such as 0-9 or 3,5")
        span = range(int(first), int(last if dash else first) + 1)
        if not span:
            raise ValueError(
                f"{option} {text}: a range is empty; write the smaller number first: {last}-{first}"
            )
        if len(numbers) + (span.stop - span.start) > most:
            raise ValueError(f"{option} {text}: these are too many; {most:,} at most")
        numbers += span
    return numbers


def labels_of(
    option: str, text: str, classes: int, names: Sequence[str], most: int = MOST_NUMBERS
) -> list[int | None]:
    """Class indices of "0-2", "3,5", names or "none".

    Where all class names are whole numbers, numbers and ranges are names; elsewhere they are
    indices. Raises ValueError, naming the option or the classes.
    """
    labels: list[int | None] = []
    numbered = _numbered(names)

    def index(number: int) -> int | None:
        if not numbered:
            return class_index(number, classes, names)
        if number not in numbered:
            raise ValueError(
                f"{option} {text}: there is no class {number}; choose from {', '.join(names[:12])}"
                f"{', ...' if len(names) > 12 else ''}"
            )
        return numbered[number]

    for part in (part.strip() for part in text.split(",")):
        if part in names and not part.isdecimal():
            labels.append(names.index(part))
        elif part == "none":
            labels.append(None)
        elif part[:1].isdecimal():
            labels += [index(number) for number in parse_numbers(option, part, most)]
        else:
            labels.append(class_index(part, classes, names))  # which says what the names are
    return labels


def _numbered(names: Sequence[str]) -> dict[int, int]:
    """The indices of classes by their names as numbers; none unless all are whole numbers."""
    if not all(name.isdecimal() for name in names):
        return {}
    numbered = {int(name): index for index, name in enumerate(names)}
    return numbered if len(numbered) == len(names) else {}


def pair(
    labels: Any, seeds: Any, index: Callable[[Any], int | None]
) -> tuple[list[int | None], list[int]]:
    """One label index and one seed for each image, from lists of them or one for all.

    ``index`` checks a label. Raises ValueError for numbers of them that do not match.
    """
    several = isinstance(labels, Iterable) and not isinstance(labels, str)
    listed = [index(label) for label in (labels if several else [labels])]
    if seeds is None:
        seeds = range(len(listed))
    numbers = [whole(seed) for seed in (seeds if isinstance(seeds, Iterable) else [seeds])]
    if len(listed) == 1:
        listed *= len(numbers)
    if not numbers or len(listed) != len(numbers):
        raise ValueError(
            f"{len(listed)} labels and {len(numbers)} seeds: give one label for each seed, "
            "or one for all"
        )
    good = [seed for seed in numbers if seed is not None and 0 <= seed < 2**63]
    if len(good) < len(numbers):
        raise ValueError("a seed must be a whole number from 0 to 2**63 - 1")
    return listed, good


def check_guidance(
    guidance: float, classes: int, dropout: float, labels: Sequence[int | None] = ()
) -> None:
    """Raises ValueError if there is nothing to guide with, or nowhere to: all labels are none.

    ``dropout``: share of the training images that were seen without their label.
    """
    if guidance != 1 and not classes:
        raise ValueError("guidance needs classes, and this model was trained without any")
    if guidance != 1 and not dropout:
        raise ValueError(
            "guidance needs a model trained with label dropout, and this one was not; "
            "use guidance=1"
        )
    if guidance != 1 and set(labels) == {None}:
        raise ValueError("guidance needs labels to guide towards")


def whole(value: Any) -> int | None:
    """A whole number from anything that is one (also numpy's and torch's); else None."""
    try:
        return operator.index(value)
    except TypeError:
        return None
