"""Networks that images are compared in the features of."""

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from legodiff.evaluate.assets import INCEPTION, find
from legodiff.evaluate.inception import Inception
from legodiff.interop.files import read_weights
from legodiff.store import locate, sha256

INCEPTION_NAME, DIGITS, DINO, POOLED = "inception", "digits", "dinov2", "pooled"
SCRIPTS = (".pt", ".ts", ".torchscript")
DINO_SIDE, DINO_DEFAULT = 224, "facebook/dinov2-large"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation of each colour that networks of ImageNet are given."""


class Features(NamedTuple):
    """What the metrics read of a batch of images."""

    pool: Tensor
    """(B, D), for all distances."""
    spatial: Tensor | None = None
    """(B, S): Inception's, for sFID."""
    logits: Tensor | None = None
    """(B, K): Inception's, for the Inception Score."""


@dataclass(frozen=True)
class FeatureNetwork:
    """A network and its name in the metrics."""

    name: str
    """As in "FD-digits"; "Inception" where the distance is the true FID."""
    sha256: str
    """Of its weights."""
    run: Callable[[Tensor], Features]
    """uint8 images (B, 1 or 3, H, W) on any device -> features, float32."""
    standard: bool = False
    """Whether it is FID's own: then distances are called FID, KID and so on."""

    @property
    def about(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": self.sha256}


def open_features(
    name: str, weights: str | None, device: torch.device, size: tuple[int, int]
) -> FeatureNetwork:
    """The network of a name, ready on a device.

    Args:
        name: "inception"; "digits", the small network that ``legodiff demo`` judges in, taught anew
            on scikit-learn's digits of the images' ``size``; "pooled", means of colour and of
            gradient, which needs no weights; "dinov2"; or a TorchScript file that takes uint8
            images (B, 3, H, W) and gives features (B, D). Such a file is a program.
        weights: a file for "inception", a folder or Hub id for "dinov2".

    Raises ValueError, in one line, for what is not there and for weights that do not fit.
    """
    if name == INCEPTION_NAME:
        return _inception(weights, device)
    if name == DINO:
        return _dino(weights or DINO_DEFAULT, device)
    if weights is not None:
        raise ValueError(f"the features {name} take no --features-weights; leave them out")
    if name == POOLED:
        return FeatureNetwork(POOLED, hashlib.sha256(b"pooled-1").hexdigest(), _pooled)
    if name == DIGITS:
        return _digits(size)
    if Path(name).suffix in SCRIPTS and Path(name).is_file():
        return _script(Path(name), device)
    raise ValueError(
        f"--features {name}: choose {INCEPTION_NAME}, {DINO}, {DIGITS}, {POOLED}, or a TorchScript "
        f"file ({', '.join(SCRIPTS)}) that is there"
    )


def _inception(weights: str | None, device: torch.device) -> FeatureNetwork:
    found = find(INCEPTION, weights)
    network = Inception()
    own, given = network.state_dict(), read_weights(found.path).tensors
    for key in own.keys() - given.keys():
        if key.endswith("num_batches_tracked"):  # not in older files, and not read here
            given[key] = own[key]
    load(network, given, f"{found.path}: FID's Inception")
    network = network.eval().requires_grad_(False).to(device)

    def run(images: Tensor) -> Features:
        return Features(*network(coloured(images)))

    name = "Inception" if found.genuine else found.path.stem
    return FeatureNetwork(name, found.sha256, run, standard=found.genuine)


def load(network: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    """Loads every tensor or none. Raises ValueError if they are not those of the network."""
    own = network.state_dict()
    wrong = sorted(own.keys() ^ tensors.keys()) or sorted(
        name for name, tensor in tensors.items() if tensor.shape != own[name].shape
    )
    if wrong:
        raise ValueError(
            f"{what} does not fit: {len(wrong)} tensors are missing, unknown or of another shape, "
            f"first {wrong[0]}"
        )
    network.load_state_dict(tensors)


def coloured(images: Tensor) -> Tensor:
    """Grey images (B, 1, H, W) as colour (B, 3, H, W); colour as it is."""
    return images.expand(-1, 3, -1, -1)


def _digits(size: tuple[int, int]) -> FeatureNetwork:
    from legodiff.evaluate.digits import DigitJudges

    if size[0] != size[1]:
        raise ValueError(f"the features digits are of square images, and these are {size}")
    judges = DigitJudges(size[0])
    digest = hashlib.sha256()
    for array in (*judges.network.coefs_, *judges.network.intercepts_):
        digest.update(np.ascontiguousarray(array).tobytes())

    def run(images: Tensor) -> Features:
        if images.shape[1] != 1:
            raise ValueError("the features digits are of grey images, and these have colour")
        found = judges.features(images.cpu().numpy())
        return Features(torch.from_numpy(found).float())

    return FeatureNetwork(DIGITS, digest.hexdigest(), run)


def _pooled(images: Tensor) -> Features:
    """64 features: in 4 x 4 cells the mean of each colour, and of the gradient of brightness."""
    pixels = coloured(images).float() / 255
    down, across = torch.gradient(pixels.mean(dim=1), dim=(1, 2))
    layers = torch.cat([pixels, torch.hypot(down, across)[:, None]], dim=1)
    return Features(F.adaptive_avg_pool2d(layers, 4).flatten(1))


def _dino(folder_or_hub_id: str, device: torch.device) -> FeatureNetwork:
    """The class token of DINOv2 (Oquab et al. 2023), as Stein et al. 2023 compare images in."""
    try:
        transformers: Any = importlib.import_module("transformers")  # takes seconds
    except ImportError as error:
        raise ValueError(
            "DINOv2 needs transformers, which is not installed; run: pip install 'legodiff[eval]'"
        ) from error
    folder = locate(folder_or_hub_id, needed=("config.json", "model.safetensors"), wanted=())
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ValueError(f"{folder} holds no {weights.name}; name a folder or Hub id of a DINOv2")
    try:
        network, told = transformers.Dinov2Model.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # of many kinds, some of several lines
        raise ValueError(
            f"{folder} cannot be opened as a DINOv2: {' '.join(str(error).split())[:200]}"
        ) from error
    if told["missing_keys"] or told["mismatched_keys"]:
        raise ValueError(f"{folder}: the weights do not fit its config.json")
    network = network.float().eval().requires_grad_(False).to(device)
    mean, std = (torch.tensor(x, device=device).view(-1, 1, 1) for x in IMAGENET)

    def run(images: Tensor) -> Features:
        pixels = F.interpolate(
            coloured(images).float(),
            (DINO_SIDE, DINO_SIDE),
            mode="bicubic",
            antialias=True,
            align_corners=False,
        ).clamp(0, 255)
        return Features(network((pixels / 255 - mean) / std).pooler_output)

    size = network.config.hidden_size
    return FeatureNetwork(f"DINOv2-{size}", sha256(weights), run)


def _script(path: Path, device: torch.device) -> FeatureNetwork:
    try:
        network: Any = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ValueError(f"{path} is no TorchScript file ({reason})") from error

    network.eval()

    def run(images: Tensor) -> Features:
        found = network(coloured(images))
        if not isinstance(found, Tensor) or found.shape[:1] != images.shape[:1] or found.ndim < 2:
            raise ValueError(f"{path} gave no features (B, D) for {len(images)} images")
        return Features(found.flatten(1).float())

    return FeatureNetwork(path.stem, sha256(path), run)
