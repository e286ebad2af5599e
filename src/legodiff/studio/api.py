"""The JSON API: what the page does, for programs, within the same limits."""

import base64
from collections.abc import Generator, Sequence
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi_offline import FastAPIOffline  # its page of descriptions needs no network
from pydantic import BaseModel, ConfigDict, Field

from legodiff import __version__
from legodiff.diffusion.canvas import WRAPS
from legodiff.diffusion.samplers import SAMPLERS
from legodiff.model.cost import brick_flops, brick_parameters
from legodiff.studio.desk import BusyError
from legodiff.studio.drawing import Drawn, Studio
from legodiff.studio.requests import Canvas, Images, Way

Label = int | str | None


class AskWay(BaseModel):
    """How to draw."""

    model_config = ConfigDict(extra="forbid")
    steps: int = 18
    sampler: str = Field("heun", description=f"One of {', '.join(SAMPLERS)}.")
    guidance: float = Field(1.0, description="Classifier-free guidance; 1 is none.")
    budget: float = Field(1.0, gt=0, le=1, description="Share of the FLOPs with all bricks.")

    def way(self) -> Way:
        return Way(self.steps, self.sampler, self.guidance, self.budget)


class AskImages(AskWay):
    """Images: one for each seed."""

    labels: list[Label] = Field(
        [None], min_length=1, max_length=1000, description="Classes, taken in turns."
    )
    seeds: list[int] = Field([0], max_length=1000, description="One image each.")


class AskCanvas(AskWay):
    """One large picture."""

    labels: list[Label] = Field(
        [None], min_length=1, max_length=1000, description="Classes from left to right."
    )
    seed: int = Field(0, ge=0, lt=2**63)
    size: tuple[int, int] = Field(description="Height and width in pixels.")
    wrap: str = Field("none", description=f"Sides that meet: {', '.join(WRAPS)}.")


class Picture(BaseModel):
    """A PNG file in base64, with how it was made in its metadata."""

    seed: int
    label: int | None
    png: str


class Answer(BaseModel):
    """Pictures, and what each cost."""

    images: list[Picture]
    nfe: int
    flops: int
    full_flops: int = Field(description="With all bricks.")
    milliseconds: float = Field(description="For an image, measured.")
    expected_milliseconds: float
    method: dict[str, Any] = Field(description="Sampler, steps, and which bricks ran when.")


class Model(BaseModel):
    """What this studio draws with, and the most that a request may ask for."""

    name: str
    size: tuple[int, int]
    classes: int
    class_names: list[str]
    bricks: list[str]
    brick_flops: list[int]
    parameters: int
    most_images: int
    most_steps: int
    most_pixels: int
    most_waiting: int


def build(studio: Studio) -> FastAPI:
    """An application with the API at its paths, described at /docs."""
    pipe, spec, limits = studio.pipe, studio.pipe.stack.spec, studio.limits
    about = (
        f"Images of {studio.name}. Each depends on its seed, label and settings only. At most "
        f"{limits.images} images, {limits.steps} steps and {limits.pixels / 1e6:.3g} megapixels a "
        'request. What cannot be is answered with 422 and `{"error": "one line"}`; what finds '
        "the queue full with 503."
    )
    api = FastAPIOffline(
        title="legodiff studio", version=__version__, description=about, redoc_url=None
    )

    @api.exception_handler(ValueError)
    async def refuse(_: Any, error: ValueError) -> JSONResponse:
        code = 503 if isinstance(error, BusyError) else 422
        return JSONResponse({"error": str(error)}, code)

    @api.exception_handler(RequestValidationError)
    async def explain(_: Any, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:]))
        return JSONResponse({"error": f"{where}: {first['msg']}".removeprefix(": ")}, 422)

    @api.exception_handler(HTTPException)
    async def deny(_: Any, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code)

    @api.get("/model")
    def model() -> Model:
        """What this studio draws with, and its limits."""
        height, width = (side * pipe.codec.factor for side in spec.image_size)
        return Model(
            name=studio.name,
            size=(height, width),
            classes=spec.classes,
            class_names=list(pipe.class_names),
            bricks=[str(brick) for brick in spec.bricks],
            brick_flops=list(brick_flops(spec)),
            parameters=sum(brick_parameters(spec)),
            most_images=limits.images,
            most_steps=limits.steps,
            most_pixels=limits.pixels,
            most_waiting=limits.waiting,
        )

    @api.post("/generate")
    def generate(asked: AskImages) -> Answer:
        """Draws an image for each seed."""
        labels = tuple(map(pipe.label_index, asked.labels))
        request = Images(asked.way(), labels, tuple(asked.seeds))
        drawn = _ended(studio.images(request))
        return _answer(studio, drawn, request.seeds, request.paired)

    @api.post("/canvas")
    def canvas(asked: AskCanvas) -> Answer:
        """Draws one large picture."""
        labels = tuple(map(pipe.label_index, asked.labels))
        request = Canvas(asked.way(), labels, asked.seed, asked.size, asked.wrap)
        drawn = _ended(studio.canvas(request))
        return _answer(studio, drawn, [asked.seed], [None])

    @api.get("/pictures/{key}/{name}", include_in_schema=False)
    def picture(key: str, name: str) -> Response:
        found = studio.shelf.get(f"/pictures/{key}/{name}")
        if found is None:
            raise HTTPException(404, "this picture has made room for newer ones")
        headers = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}
        return Response(found.png, media_type="image/png", headers=headers)

    return api


def _ended(events: Generator[Any, None, Drawn]) -> Drawn:
    """What is drawn, without the news on the way."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            drawn: Drawn = end.value
            return drawn


def _answer(
    studio: Studio, drawn: Drawn, seeds: Sequence[int], labels: Sequence[int | None]
) -> Answer:
    files = map(studio.shelf.get, drawn.pictures)
    images = [
        Picture(seed=seed, label=label, png=base64.b64encode(file.png).decode())
        for seed, label, file in zip(seeds, labels, files, strict=True)
        if file is not None
    ]
    return Answer(
        images=images,
        nfe=drawn.nfe,
        flops=drawn.flops,
        full_flops=drawn.full_flops,
        milliseconds=drawn.milliseconds,
        expected_milliseconds=drawn.expected,
        method=drawn.method.to_dict(),
    )
