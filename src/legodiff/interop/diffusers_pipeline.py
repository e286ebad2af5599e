"""A pipeline of diffusers around ours: for the folders that ``write_diffusers`` makes.

    DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)

opens such a folder: the ``pipeline.py`` in it imports this file. Importing it needs diffusers.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from legodiff import store
from legodiff.codec import codec_from_dict, to_pil
from legodiff.diffusion.skipping import SkipPlan
from legodiff.drawing import finite
from legodiff.model.spec import StackSpec
from legodiff.model.stack import LegoStack
from legodiff.pipeline import LegoPipeline
from legodiff.plans import Curve
from legodiff.sampling import Method, Sampling

CODE = '''\
"""Opened by diffusers with trust_remote_code=True; needs legodiff."""

from legodiff.interop.diffusers_pipeline import LegoDiffusersPipeline

__all__ = ["LegoDiffusersPipeline"]
'''


class LegoModel(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A stack, with all else that ``LegoPipeline`` knows of it, as a model of diffusers."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, about: Mapping[str, Any], curves: Sequence[Mapping[str, Any]] = ()) -> None:
        """``about`` is ``LegoPipeline.to_dict()``; ``curves`` are its plans, as data."""
        super().__init__()
        self.stack = LegoStack(StackSpec.from_dict(about["stack"]))
        self.pipe = LegoPipeline(
            self.stack,
            codec_from_dict(about["codec"]),
            about["class_names"],
            store.build(Sampling, "sampling", about["sampling"]),
            about["label_dropout"],
            about["run"],
            [Curve.from_dict(curve) for curve in curves],
        )

    def forward(
        self,
        noisy: Tensor,
        sigma: Tensor,
        labels: Tensor | None = None,
        bricks: Sequence[int] | None = None,
    ) -> Tensor:
        """The clean estimate, as ``LegoStack`` gives it."""
        estimate: Tensor = self.stack(noisy, sigma, labels, bricks)
        return estimate

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], **options: Any) -> "LegoModel":
        """As in diffusers, but weights that do not fit raise ValueError, not just a warning."""
        options |= {"use_safetensors": True, "low_cpu_mem_usage": False}
        model: LegoModel
        model, found = super().from_pretrained(folder, **options, output_loading_info=True)
        wrong = [name for kind in found.values() for name in kind]
        if wrong:
            raise ValueError(
                f"{folder} does not fit its config.json: {len(wrong)} tensors are missing, unknown "
                f"or of another shape, first {wrong[0]}"
            )
        return model


class LegoDiffusersPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Draws as ``LegoPipeline`` does, called as diffusers' pipelines are."""

    def __init__(self, stack: LegoModel) -> None:
        super().__init__()
        self.register_modules(stack=stack)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str | None] | Tensor | None = None,
        num_inference_steps: int = 18,
        guidance_scale: float = 1.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        *,
        batch_size: int = 1,
        sampler: str = "heun",
        budget: float | str | None = None,
    ) -> Any:
        """Draws images of the training size.

        Args:
            class_labels: class indices or names, None for no class; one for each image or for all.
            num_inference_steps: steps of the sampler.
            guidance_scale: of classifier-free guidance; 1 is none.
            generator: gives the noise, a list one to each image: with the seeds of
                ``LegoPipeline`` the images are the same.
            output_type: "pil", "np" (B, H, W, C) or "pt" (B, C, H, W), both from 0 to 1.
            return_dict: an ``ImagePipelineOutput``; else a tuple.
            batch_size: images, if neither labels nor generators are several.
            sampler, budget: as for ``LegoPipeline``.

        Raises ValueError, in one line, for arguments that cannot be.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type {output_type!r}: choose pil, np or pt")
        pipe: LegoPipeline = self.stack.pipe
        labels, generators = _pair(class_labels, generator, batch_size)
        indices = [pipe.label_index(label) for label in labels]
        plan = SkipPlan.full(len(pipe.stack.bricks))
        full = Method(plan, num_inference_steps, sampler, guidance=guidance_scale)
        method = pipe.within(full, budget, batch=len(indices))
        pipe.check_guidance(method.guidance, indices)
        pipe.codec.prepare()
        denoise = method.denoiser(pipe.stack, pipe.stack.spec.classes)
        size = pipe.stack.spec.image_size
        with self.progress_bar(total=method.steps) as bar:
            drawn = pipe.draw(
                denoise, indices, generators, method, size, on_step=lambda *_: bar.update()
            )
        images = _output(pipe.codec.decode(finite(drawn)), output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> None:
        """As in diffusers, with the ``pipeline.py`` that opens the folder again."""
        super().save_pretrained(save_directory, **options)
        index = Path(save_directory) / "model_index.json"
        content = json.loads(index.read_text(encoding="utf-8"))
        content["_class_name"] = ["pipeline", type(self).__name__]
        store.write_atomically(index, json.dumps(content, indent=2).encode())
        store.write_atomically(index.with_name("pipeline.py"), CODE.encode())


def _pair(
    labels: Any, generator: torch.Generator | Sequence[torch.Generator] | None, count: int
) -> tuple[list[Any], list[torch.Generator]]:
    """A label and a generator for each image, from lists of them or one for all."""
    labels = labels.tolist() if isinstance(labels, Tensor) else labels
    listed = list(labels) if isinstance(labels, list | tuple) else [labels]
    if generator is None:
        generator = torch.default_generator
    generators = [generator] if isinstance(generator, torch.Generator) else list(generator)
    several = {len(given) for given in (listed, generators) if len(given) != 1} or {count}
    if len(several) > 1:
        raise ValueError(
            f"{len(listed)} class_labels and {len(generators)} generators: give one for each image"
        )
    number = several.pop()
    pairs = [given * number if len(given) == 1 else given for given in (listed, generators)]
    return pairs[0], pairs[1]


def _output(pixels: Tensor, kind: str) -> Any:
    """uint8 (B, C, H, W) in the form that was asked for."""
    if kind == "pil":
        return to_pil(pixels)
    values = pixels.float() / 255
    return values if kind == "pt" else values.movedim(1, -1).cpu().numpy()
