"""The formats that models leave in, and the packages that each needs."""

from importlib import import_module

FORMATS: dict[str, tuple[str, ...]] = {
    "torch-export": (),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "diffusers": ("diffusers",),
    "state-dict": (),
}
EXTRAS = {"onnx": "export", "diffusers": "latent"}


def require(to: str) -> None:
    """Raises ValueError for an unknown format, and, naming the extra, for a missing package."""
    if to not in FORMATS:
        raise ValueError(f"format {to!r}: choose from {', '.join(FORMATS)}")
    for package in FORMATS[to]:
        try:
            import_module(package)
        except ImportError as error:
            raise ValueError(
                f"export to {to} needs {package}, which is not installed; "
                f"run: pip install 'legodiff[{EXTRAS[to]}]'"
            ) from error
