"""Models of diffusers, from their folders, as a pipeline whose first brick they are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from legodiff import store
from legodiff.codec import Codec, LatentCodec, PixelCodec
from legodiff.interop.files import read_weights
from legodiff.interop.lego import LATENTS
from legodiff.model.spec import NETWORKS, ForeignSpec, StackSpec
from legodiff.model.stack import LegoStack
from legodiff.noise import beta_sigmas
from legodiff.pipeline import LegoPipeline
from legodiff.sampling import Sampling
from legodiff.vae import VaeSpec, open_vae

WIDTH, HEADS = 128, 4  # of the LEGO bricks that may come on top
WEIGHTS = "diffusion_pytorch_model"
OLD_NAMES = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}
"""Of attention, before diffusers 0.12."""
FLOW_MAX = 160.0
"""Noise level that sampling of a flow starts from: its time is 0.994."""
SCHEDULE = {
    "beta_schedule": "kind",
    "num_train_timesteps": "steps",
    "beta_start": "beta_first",
    "beta_end": "beta_last",
    "rescale_betas_zero_snr": "zero_snr",
}
"""Settings of a scheduler -> arguments of ``beta_sigmas``."""
DECODERS = ("VQModel", "Autoencoder", "ConsistencyDecoder")
"""What the classes are called that turn latents into pixels."""


def is_diffusers_folder(path: Path) -> bool:
    """Whether a folder holds a pipeline or a model of diffusers."""
    config = path / "config.json"
    return (path / "model_index.json").is_file() or (
        config.is_file() and "_diffusers_version" in config.read_text(errors="replace")
    )


def diffusers_pipeline(
    folder: Path, conditions: Mapping[str, Tensor] | None = None, vae: VaeSpec | None = None
) -> LegoPipeline:
    """A stack whose only brick is the network of a pipeline or model of diffusers.

    Args:
        folder: as ``save_pretrained`` writes it.
        conditions: other inputs of the network, such as ``encoder_hidden_states``, each (1, ...).
        vae: what made the latents, of a model of latents without a VAE beside it.

    Raises ValueError, in one line, for other folders, networks and schedules.
    """
    part = next((p for p in ("unet", "transformer") if (folder / p).is_dir()), ".")
    config = _read_json(folder / part / "config.json")
    kind = config.get("_class_name")
    if kind not in NETWORKS:
        raise ValueError(f"{folder}: a network of {kind!r}; known are {', '.join(NETWORKS[:4])}")
    inside = {name: value for name, value in config.items() if not name.startswith("_")}
    conditions = conditions or {}
    prediction, schedule, sigma_data = _schedule(folder, kind)
    brick = ForeignSpec(
        network=kind,
        config=inside,
        prediction=prediction,
        schedule=schedule,
        sigma_data=sigma_data,
        conditions={name: tuple(tensor.shape) for name, tensor in conditions.items()},
        classes=inside.get("num_class_embeds") or _classes(kind, inside),
        no_class=kind == "DiTTransformer2DModel",
        step=inside.get("patch_size") or 2 ** (len(inside.get("block_out_channels", [0])) - 1),
    )
    _check_conditions(brick, folder)
    side = inside.get("sample_size") or 32
    channels = inside["in_channels"]
    spec = StackSpec(
        image_size=(side, side) if isinstance(side, int) else tuple(side),
        channels=channels,
        width=WIDTH,
        heads=HEADS,
        bricks=(brick,),
        classes=brick.classes,
    )
    codec = _codec(folder, kind, channels, vae)
    torch.manual_seed(0)  # of what only bricks on top will use
    stack = LegoStack(spec)
    network: Any = stack.bricks[0].network
    given = network.config.get("out_channels") or channels
    if given not in (channels, 2 * channels):
        raise ValueError(
            f"{folder}: the network takes {channels} channels and gives {given}; known are those "
            "that give as many, or twice as many with a learned variance"
        )
    weights = {f"bricks.0.{name}": tensor.float() for name, tensor in conditions.items()}
    known = stack.state_dict()
    for name, tensor in _weights(folder / part).items():
        weights[f"bricks.0.network.{_new_name(name, known)}"] = tensor.float()
    shared = {name: tensor for name, tensor in known.items() if not name.startswith("bricks.")}
    stack.load_weights(weights | shared, str(folder / part))
    return LegoPipeline(
        stack.eval(),
        codec,
        sampling=_sampling(prediction, schedule),
        label_dropout=0.1 if brick.classes and brick.no_class else 0.0,
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    content = store.read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold named values")
    return content


def _schedule(folder: Path, network: str) -> tuple[str, dict[str, Any], float]:
    """What a network predicts, the table behind its timesteps, and EDM's sigma_data."""
    places = [folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"]
    path = next((place for place in places if place.is_file()), None)
    if path is None:  # a model on its own
        if network == "UNet2DConditionModel":
            raise ValueError(
                f"{folder}: nothing says with which noise levels this {network} was trained; give "
                "the folder of the whole pipeline, or put its scheduler_config.json into this one"
            )
        return "flow" if network == "SD3Transformer2DModel" else "epsilon", {}, 0.5
    config = _read_json(path)
    kind = str(config.get("_class_name"))
    if kind.startswith("FlowMatch"):
        return "flow", {}, 0.5
    if kind.startswith("EDM"):
        if config.get("prediction_type", "epsilon") != "epsilon":
            raise ValueError(f"{path}: EDM with {config['prediction_type']} is not known here")
        return "edm", {}, float(config.get("sigma_data", 0.5))
    if "beta_schedule" not in config:
        raise ValueError(f"{path}: {kind} is not known here; it has no table of betas")
    if config.get("trained_betas") is not None:
        raise ValueError(f"{path}: betas of its own (trained_betas) are not known here")
    schedule = {ours: config[theirs] for theirs, ours in SCHEDULE.items() if theirs in config}
    beta_sigmas(**schedule)  # raises for another kind
    return str(config.get("prediction_type", "epsilon")), schedule, 0.5


def _classes(kind: str, config: Mapping[str, Any]) -> int:
    return int(config.get("num_embeds_ada_norm") or 0) if kind == "DiTTransformer2DModel" else 0


def _check_conditions(brick: ForeignSpec, folder: Path) -> None:
    wanted = {
        "UNet2DConditionModel": {"encoder_hidden_states"},
        "SD3Transformer2DModel": {"encoder_hidden_states", "pooled_projections"},
    }.get(brick.network, set())
    if wanted != set(brick.conditions):
        names = " and ".join(sorted(wanted)) or "nothing"
        raise ValueError(
            f"{folder}: {brick.network} is conditioned on {names}; give that in a file of tensors "
            "with --condition FILE"
        )


def _weights(folder: Path) -> dict[str, Tensor]:
    index = folder / f"{WEIGHTS}.safetensors.index.json"
    if index.is_file():
        names = set(_read_json(index).get("weight_map", {}).values())
        if any(Path(str(name)).name != name for name in names):
            raise ValueError(f"{index} names files outside of its folder")
        parts = [read_weights(folder / name).tensors for name in sorted(names)]
        return {name: tensor for part in parts for name, tensor in part.items()}
    for suffix in ("safetensors", "bin"):
        if (folder / f"{WEIGHTS}.{suffix}").is_file():
            return read_weights(folder / f"{WEIGHTS}.{suffix}").tensors
    raise ValueError(f"{folder} holds no {WEIGHTS}.safetensors")


def _new_name(name: str, known: Mapping[str, Tensor]) -> str:
    if f"bricks.0.network.{name}" in known:
        return name
    for old, new in OLD_NAMES.items():
        name = name.replace(old, new)
    return name


def _codec(folder: Path, kind: str, channels: int, vae: VaeSpec | None) -> Codec:
    if (folder / "vae").is_dir():
        vae = open_vae(folder / "vae").spec
    elif vae is None:
        _check_decoders(folder)
        vae = None if kind == "UNet2DModel" else LATENTS
    if vae is not None:
        return LatentCodec(vae, mean=(0.0,) * channels, scale=1.0)
    return PixelCodec(mean=(0.0,) * channels)


def _check_decoders(folder: Path) -> None:
    """Raises ValueError if a pipeline has a decoder that is not read here: it is not of pixels."""
    index = folder / "model_index.json"
    parts = _read_json(index) if index.is_file() else {}
    kinds = {name: part[-1] for name, part in parts.items() if isinstance(part, list) and part}
    for config in folder.glob("*/config.json"):
        kinds[config.parent.name] = _read_json(config).get("_class_name")
    for name, kind in sorted(kinds.items()):
        if any(word in str(kind) for word in DECODERS):
            raise ValueError(
                f"{folder}: a model of latents, whose decoder {name} ({kind}) is not read here; "
                "known is an AutoencoderKL, in a folder vae or given with --vae"
            )


def _sampling(prediction: str, schedule: Mapping[str, Any]) -> Sampling:
    if prediction == "edm":
        return Sampling()
    if prediction == "flow":
        return Sampling(sigma_max=FLOW_MAX)
    table = beta_sigmas(**schedule)
    last = table[-2] if schedule.get("zero_snr") else table[-1]
    return Sampling(sigma_min=float(table[0]), sigma_max=float(last))
