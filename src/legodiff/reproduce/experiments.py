"""Every experiment by its name, at both scales, with what the paper prints."""

from dataclasses import replace
from typing import Any

from legodiff.reproduce.experiment import Experiment, Model, Scale
from legodiff.reproduce.models import (
    BRIEF,
    SMALL,
    of_recipe,
    on_celeba,
    on_digits,
    on_photographs,
    patch_bricks,
    patch_ratios,
    refined,
    shared_out,
    small,
)

INCEPTION: dict[str, Any] = {"features": "inception", "samples": 50_000}
CHURN = {"churn": 10.0, "s_min": 0.05, "s_max": 20.0, "s_noise": 1.003}
SHARES = {"shares": tuple(number / 8 for number in range(9))}
FEW_SHARES = {"shares": (0.0, 0.25, 0.5, 0.75, 1.0)}
UNLABELLED = "train.label_dropout=1.0"

DIGITS = Scale("digits", small(), samples=1000)
PHOTOGRAPHS = Scale(
    "photographs",
    (
        on_photographs("DiT", ("image", 4, 6)),
        on_photographs("LEGO-PG", (8, 2, 1), ("image", 4, 5)),
        on_photographs("LEGO-PR", ("image", 4, 5), (8, 2, 1)),
    ),
    features="pooled",
    samples=1000,
    image=(3, 2),
)
CELEBA = Scale(
    "img_align_celeba.zip",
    of_recipe(
        "celeba-64-s-pg",
        *("DiT-S/2=dit-s-2-64", "LEGO-S-PG=lego-s-pg-64", "LEGO-S-PR=lego-s-pr-64"),
    ),
    steps=75,
    image=(3, 0),
    **INCEPTION,
)
IMAGENET_64 = Scale(
    "imagenet/train",
    of_recipe(
        "imagenet-64-l-pg",
        *("DiT-L/2=dit-l-2-64", "LEGO-L-PG=lego-l-pg-64", "LEGO-L-PR=lego-l-pr-64"),
    ),
    steps=256,
    options=CHURN,
    image=(3, 1000),
    **INCEPTION,
)
IMAGENET_256 = Scale(
    "latents-256",
    of_recipe(
        "imagenet-256-xl-pg",
        *("DiT-XL/2=dit-xl-2-32", "LEGO-XL-PG=lego-xl-pg-32", "LEGO-XL-PR=lego-xl-pr-32"),
    ),
    steps=250,
    sampler="ddpm",
    image=(4, 1000),
    factor=8,
    reference="VIRTUAL_imagenet256_labeled.npz",
    **INCEPTION,
)
IMAGENET_512 = replace(
    IMAGENET_256,
    data="latents-512",
    reference="VIRTUAL_imagenet512.npz",
    models=of_recipe(
        "imagenet-512-xl-pg",
        *("DiT-XL/2=dit-xl-2-64", "LEGO-XL-PG=lego-xl-pg-64", "LEGO-XL-PR=lego-xl-pr-64"),
    ),
)
CIFAR = Scale("cifar-10-python.tar.gz", (), steps=18, image=(3, 0), **INCEPTION)
CIFAR_IMAGES = "train.images=20000000"
U_SHAPED = of_recipe("imagenet-256-xl-u", "LEGO-XL-U=lego-xl-u-32")
CANVASES = {"perceptual": "gradients", "canvas": (96, 160), "canvases": 6, "real": 400}
BASE = on_digits("base", ("image", 4, 2), changes=("train.images=72000",))
GUIDANCE = (1.5,)  # the paper does not print its scale; DiT's best is 1.5

SIZES = Scale(
    "digits",  # which are not read: nothing is trained
    (),
    image=(3, 1000),
    more={"presets": [f"lego-{size}-pg-{grid}" for grid in (64, 32) for size in ("s", "l", "xl")]},
)
FIGURE4 = "Left: quality; right: time. PG's rule is low noise, PR's is high noise."
EXPERIMENTS: dict[str, Experiment] = {
    "table1": Experiment(
        "Table 1: without classes",
        "quality",
        replace(DIGITS, models=small("DiT PG PR", UNLABELLED), labelled=False),
        CELEBA,
        {
            "U-ViT-S/4": "44 M, 1.2 G, FID 2.87",
            "DiT-S/2, DiT": "33 M, 0.4 G, FID 2.52",
            "LEGO-S-PG, LEGO-PG": "35 M, 0.2 G, FID 2.17",
            "LEGO-S-PR, LEGO-PR": "35 M, 0.2 G, FID 2.09",
        },
        "The paper's figures are of CelebA 64x64. `legodiff bench` compares the cost of a U-ViT.",
    ),
    "table2": Experiment(
        "Table 2: with classes",
        "quality",
        replace(DIGITS, models=small("DiT PG PR")),
        IMAGENET_64,
        {
            "U-ViT-L/4": "287 M, 91.2 G, FID 4.26",
            "DiT-L/2, DiT": "458 M, 161.4 G, FID 2.91",
            "LEGO-L-PG, LEGO-PG": "464 M, 68.8 G, FID 2.16",
            "LEGO-L-PR, LEGO-PR": "464 M, 68.8 G, FID 2.29",
        },
        "The paper's figures are of ImageNet 64x64. `legodiff bench` compares the cost of a U-ViT.",
    ),
    "table3": Experiment(
        "Table 3: without and with guidance, in all three orders",
        "quality",
        replace(DIGITS, models=small("DiT PG PR U"), guidances=(1.0, *GUIDANCE)),
        replace(IMAGENET_256, models=(*IMAGENET_256.models, *U_SHAPED), guidances=(1.0, *GUIDANCE)),
        {
            "DiT-XL/2, DiT": "FID 9.62 / 2.27, IS 121.5 / 278.2",
            "LEGO-XL-PG, LEGO-PG": "FID 7.15 / 2.05, IS 192.8 / 289.1",
            "LEGO-XL-PR, LEGO-PR": "FID 5.38 / 2.35, IS 189.1 / 284.7",
            "LEGO-XL-U, LEGO-U": "FID 5.28 / 2.59, IS 337.9 / 338.1",
        },
        "The paper's figures are of ImageNet 256x256, without / with guidance.",
    ),
    "table3-512": Experiment(
        "Table 3, its lower half: larger images, without and with guidance",
        "quality",
        replace(PHOTOGRAPHS, guidances=(1.0, *GUIDANCE)),
        replace(IMAGENET_512, guidances=(1.0, *GUIDANCE)),
        {
            "DiT-XL/2, DiT": "FID 12.03 / 3.04, IS 105.25 / 240.82",
            "LEGO-XL-PG, LEGO-PG": "FID 10.06 / 3.74, IS 192.27 / 285.66",
            "LEGO-XL-PR, LEGO-PR": "FID 9.01 / 3.99, IS 168.92 / 265.75",
        },
        "The paper's figures are of ImageNet 512x512, without / with guidance.",
    ),
    "table4": Experiment(
        "Table 4: a pretrained model as the first brick",
        "quality",
        replace(DIGITS, models=refined(BASE, (4, 2, 1), *BRIEF)),
        replace(CIFAR, models=refined(Model("base", "cifar10-base"), (4, 2, 2), CIFAR_IMAGES)),
        {
            "base": "FID 2.5",
            "base (frozen) + LEGO-PR": "FID 1.92",
            "base (unfrozen) + LEGO-PR": "FID 1.88",
        },
        "The paper's base is a VP network trained by others, on CIFAR-10. Bases of diffusers are "
        "imported: `legodiff import google/ddpm-cifar10-32`.",
    ),
    "table5": Experiment(
        "Tables 5 and 6: sizes of the stacks",
        "architecture",
        SIZES,
        SIZES,
        {
            f"lego-{s}-pg-{g}": f"{m} M"
            for s, m in (("s", 35), ("l", 464), ("xl", 681))
            for g in (64, 32)
        },
        "Counted with 3 channels and 1,000 classes; a class costs one vector of the width.",
    ),
    "table7": Experiment(
        "Table 7: canvases beside images of the data set",
        "canvases",
        replace(PHOTOGRAPHS, more={**CANVASES, "sides": (32, 64)}),
        replace(
            IMAGENET_256,
            guidances=GUIDANCE,
            reference="imagenet/train",
            more={
                **{"perceptual": "lpips", "canvas": (512, 2048), "canvases": 100},
                **{"sides": (256, 512), "real": 1000},
            },
        ),
        {
            "DiT-XL/2, DiT": "0.15, 0.55; random 0.66, 0.76",
            "LEGO-XL-PG, LEGO-PG": "0.14, 0.36; random 0.21, 0.37",
            "LEGO-XL-PR, LEGO-PR": "0.15, 0.55; random 0.25, 0.55",
        },
        "The paper does not say which images a crop is compared with: here the nearest, and all on "
        "average. Its figures are LPIPS of 100 canvases of ImageNet.",
    ),
    "figure2": Experiment(
        "Figure 2: quality while training goes on",
        "convergence",
        replace(DIGITS, models=small("DiT PG PR"), guidances=GUIDANCE),
        replace(IMAGENET_256, guidances=GUIDANCE),
    ),
    "figure4": Experiment(
        "Figure 4: how much of the top brick (XL, 256x256)",
        "skipping",
        replace(DIGITS, more=FEW_SHARES),
        replace(IMAGENET_256, models=IMAGENET_256.models[1:], more=SHARES),
        note=FIGURE4,
    ),
    "figure5": Experiment(
        "Figure 5: what each brick makes of the estimate below it, PG",
        "refinement",
        replace(DIGITS, models=small("PG")),
        replace(CELEBA, models=CELEBA.models[1:2]),
    ),
    "figure6": Experiment(
        "Figure 6: what each brick makes of the estimate below it, PR",
        "refinement",
        replace(DIGITS, models=small("PR")),
        replace(CELEBA, models=CELEBA.models[2:]),
    ),
    "figure7": Experiment(
        "Figure 7: how much of the top brick, without classes (S, CelebA)",
        "skipping",
        replace(DIGITS, models=small("PG PR", UNLABELLED), labelled=False, more=FEW_SHARES),
        replace(CELEBA, models=CELEBA.models[1:], more=SHARES),
        note=FIGURE4,
    ),
    "figure8": Experiment(
        "Figure 8: how much of the top brick, with guidance (L, ImageNet 64x64)",
        "skipping",
        replace(DIGITS, guidances=GUIDANCE, more=FEW_SHARES),
        replace(IMAGENET_64, models=IMAGENET_64.models[1:], guidances=GUIDANCE, more=SHARES),
        note=FIGURE4,
    ),
    "figure9": Experiment(
        "Figure 9: how much of the top brick, larger images, with guidance (XL, 512x512)",
        "skipping",
        replace(
            PHOTOGRAPHS,
            models=PHOTOGRAPHS.models[1:],
            samples=500,
            guidances=GUIDANCE,
            more={"shares": (0.0, 0.5, 1.0)},
        ),
        replace(IMAGENET_512, models=IMAGENET_512.models[1:], guidances=GUIDANCE, more=SHARES),
        note=FIGURE4,
    ),
    "figure10": Experiment(
        "Figure 10: how many of the blocks in the image-brick",
        "quality",
        replace(
            DIGITS,
            models=shared_out(on_digits, 6, 1),
            more={"axis": "share of the blocks in the image-brick"},
        ),
        replace(
            CELEBA,
            models=shared_out(on_celeba, 12, 2),
            more={"axis": "share of the blocks in the image-brick"},
        ),
        note="The paper does not say on which data.",
    ),
    "figure11": Experiment(
        "Figure 11: which patch-bricks",
        "quality",
        replace(DIGITS, models=patch_bricks(on_digits, (4, 8), 2, ("image", 2, 3))),
        replace(CELEBA, models=patch_bricks(on_celeba, (4, 8, 16), 2, ("image", 2, 6))),
        note="The paper's sizes are 4, 8 and 16; of 16x16 digits the last would be all.",
    ),
    "patch-ratio": Experiment(
        "How many of its patches a brick learns from",
        "quality",
        replace(
            DIGITS,
            models=patch_ratios(on_digits, SMALL),
            more={"axis": "share of the patches that are trained on"},
        ),
        replace(
            CELEBA,
            models=patch_ratios(
                on_celeba, {"4": (4, 2, 2), "8": (16, 8, 4), "image": ("image", 2, 6)}
            ),
            more={"axis": "share of the patches that are trained on"},
        ),
        note="The paper uses half on CelebA and three quarters on ImageNet, and shows no others.",
    ),
    "canvas": Experiment(
        "A canvas of 4096x1024",
        "wide",
        replace(PHOTOGRAPHS, models=PHOTOGRAPHS.models[2:], more={"canvas": (1024, 4096)}),
        replace(
            IMAGENET_256,
            models=IMAGENET_256.models[1:],
            guidances=GUIDANCE,
            more={"canvas": (1024, 4096)},
        ),
        note="The paper's largest is 2048x600.",
    ),
    "second-data": Experiment(
        "Another data set: crops of photographs, in colour",
        "quality",
        replace(PHOTOGRAPHS, guidances=(1.0, *GUIDANCE)),
        replace(IMAGENET_64, data="photos/"),
        note="At the paper's scale: any 64x64 images of your own, with --data.",
    ),
}
SAME = {"table6": "table5"}
"""Other names of the same."""
