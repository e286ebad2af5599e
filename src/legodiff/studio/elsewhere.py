"""How to ask for the same elsewhere: the words of command lines, the lines of Python."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from legodiff.labels import labels_of
from legodiff.pipeline import LegoPipeline

DTYPES = {"bf16": "torch.bfloat16"}
"""What ``--precision`` is in Python, where it is not the default."""


@dataclass(frozen=True)
class Opened:
    """How the model was opened, and so has to be opened again."""

    name: str
    """A folder or Hub id."""
    weights: str = "ema"
    vae: str | None = None
    """None for the one that is recorded with the model."""
    precision: str = "fp32"

    def words(self) -> list[str]:
        """For a command line, after the name."""
        words = [] if self.weights == "ema" else ["--weights", self.weights]
        words += [] if self.vae is None else ["--vae", self.vae]
        return words + ([] if self.precision == "fp32" else ["--precision", self.precision])

    def script(self, imports: Sequence[str], lines: Sequence[str]) -> str:
        """Lines of Python that open the model as ``pipe``, and then go on."""
        told = [repr(self.name)]
        told += [] if self.weights == "ema" else [f"weights={self.weights!r}"]
        told += [] if self.vae is None else [f"vae={self.vae!r}"]
        opened = [f"pipe = LegoPipeline.from_pretrained({', '.join(told)})"]
        if self.precision in DTYPES:
            opened += [f"pipe.to(dtype={DTYPES[self.precision]})"]
            imports = ["import torch", *(line for line in imports if line != "import torch")]
        return "\n".join([*imports, "", *opened, *lines, ""])


def name(pipe: LegoPipeline, label: int | None) -> Any:
    """A class by its name, or by its number if it has none; None for no class."""
    return pipe.class_names[label] if label is not None and pipe.class_names else label


def listed(pipe: LegoPipeline, labels: Sequence[int | None]) -> str:
    """Classes as ``--labels`` and the page read them: by name, or by number.

    They stand there by number where a name would be read as something else: one with a comma, or
    one that is another's number.
    """
    none = str(pipe.stack.spec.classes) if "none" in pipe.class_names else "none"
    by_name = ",".join(none if one is None else str(name(pipe, one)) for one in labels)
    if _read(pipe, by_name) == list(labels):
        return by_name
    return ",".join(none if one is None else str(one) for one in labels)


def _read(pipe: LegoPipeline, text: str) -> list[int | None] | None:
    """The classes that a text is read as, None if it cannot be."""
    try:
        return labels_of("--labels", text, pipe.stack.spec.classes, pipe.class_names)
    except ValueError:
        return None
