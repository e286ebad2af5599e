"""Options that several commands have, each told once."""

from typing import Annotated

import typer

DeviceOption = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda, mps ...", show_default=True)
]
# How images are drawn, said the same way by every command that draws.
StepsOption = Annotated[int, typer.Option("--steps", help="Steps of the sampler.", min=1)]
SamplerOption = Annotated[
    str, typer.Option("--sampler", help="heun, euler, dpmpp_2m, ddpm or ddim.")
]
GuidanceOption = Annotated[
    float, typer.Option("--guidance", help="Classifier-free guidance; 1 is none.")
]
IntervalOption = Annotated[
    str | None,
    typer.Option(
        "--guidance-interval", help="Noise levels with guidance, FROM,TO: 0.2,5; by default all."
    ),
]
SelfGuidanceOption = Annotated[
    float, typer.Option("--self-guidance", help="Guidance by the lowest brick; 1 is none.")
]
SamplerOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        help="Of the sampler: churn=10, s_min, s_max, s_noise; eta=0.5. Repeatable.",
    ),
]
WeightsOption = Annotated[
    str, typer.Option("--weights", help="ema: their average; raw: as they were last.")
]
VaeOption = Annotated[
    str | None, typer.Option("--vae", help="VAE of a model of latents: a folder or Hub id.")
]
SkipOption = Annotated[
    float | None,
    typer.Option("--skip", help="Share of the steps without the top brick, 0 to 1."),
]
BudgetOption = Annotated[
    str | None,
    typer.Option("--budget", help="Share of the full FLOPs, 0.5, or time for an image, 50ms."),
]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Through torch.compile: pays off for many images.")
]
PrecisionOption = Annotated[
    str, typer.Option("--precision", help="fp32, or bf16: rounded blocks, meant for GPUs.")
]
