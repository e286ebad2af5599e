import base64
import io
import tracemalloc

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from legodiff import LegoPipeline
from legodiff.studio import server
from legodiff.studio.drawing import Studio
from legodiff.studio.requests import Limits

LIMITS = Limits(images=4, steps=20, pixels=4096, waiting=0)


@pytest.fixture(scope="module")
def studio(model):
    return Studio(LegoPipeline.from_pretrained(model), model, LIMITS)


@pytest.fixture(scope="module")
def client(studio):
    with TestClient(server.app(studio), base_url="http://127.0.0.1:7860") as client:
        yield client


def decoded(image):
    return Image.open(io.BytesIO(base64.b64decode(image["png"])))


def test_images_are_the_pipelines(client, studio):
    asked = {"labels": ["zero", 3, None], "seeds": [4, 9, 2], "steps": 3, "budget": 0.8}
    answer = client.post("/generate", json=asked)
    assert answer.status_code == 200
    found = answer.json()
    same = studio.pipe(**asked)
    assert [image["label"] for image in found["images"]] == [0, 3, None]
    assert (found["nfe"], found["flops"]) == (same.nfe, same.flops)
    assert found["full_flops"] == studio.pipe(seeds=0, steps=3).flops
    assert found["method"] == same.method.to_dict()
    for image, expected, seed in zip(found["images"], same.images, [4, 9, 2], strict=True):
        assert np.array_equal(np.asarray(decoded(image)), np.asarray(expected))
        assert decoded(image).info["seed"] == str(image["seed"]) == str(seed)


def test_a_canvas_has_its_size(client):
    asked = {"labels": [3, 4], "seed": 1, "size": [16, 40], "steps": 2, "wrap": "x"}
    found = client.post("/canvas", json=asked).json()
    assert decoded(found["images"][0]).size == (40, 16)


def test_the_model_and_its_limits_are_told(client, studio):
    found = client.get("/model").json()
    assert found["size"] == [16, 16]
    assert found["class_names"] == list(studio.pipe.class_names)
    assert (found["most_images"], found["most_steps"], found["most_pixels"]) == (4, 20, 4096)


@pytest.mark.parametrize(
    ("path", "asked", "line"),
    [
        ("/generate", {"seeds": list(range(5))}, "5 images: this studio draws from 1 to 4 at once"),
        ("/generate", {"seeds": []}, "0 images: this studio draws from 1 to 4 at once"),
        ("/generate", {"seeds": [1, 0, 1]}, "seed 1 stands there twice; give each seed once"),
        ("/generate", {"steps": 21}, "21 steps: this studio takes from 1 to 20"),
        ("/generate", {"steps": "many"}, "steps: Input should be a valid integer"),
        ("/generate", {"labels": ["eleven"]}, "label 'eleven': choose from 0 to 9"),
        ("/generate", {"sampler": "fast"}, "sampler"),
        ("/generate", {"labels": []}, "labels: List should have at least 1 item"),
        ("/generate", {"seeds": [-1]}, "a seed must be a whole number from 0"),
        ("/generate", {"path": "/etc/passwd"}, "path: Extra inputs are not permitted"),
        ("/generate", {"steps": 2, "budget": 2}, "budget: Input should be less than or equal to 1"),
        ("/generate", {"steps": 2, "budget": 0.01}, "budget 0.01 is too small"),
        ("/generate", {"steps": 2, "guidance": 1e9, "labels": [1]}, "guidance is 1000000000.0"),
        ("/canvas", {"steps": 2}, "size: Field required"),
        ("/canvas", {"steps": 2, "size": [64, 128]}, "these are 0.00819 megapixels"),
        ("/canvas", {"steps": 2, "size": [17, 16]}, "17x16"),
        ("/canvas", {"steps": 2, "size": [16, 32], "wrap": "z"}, "wrap is 'z'; choose from none"),
    ],
)
def test_what_cannot_be_is_one_line(client, path, asked, line):
    answer = client.post(path, json=asked)
    assert answer.status_code == 422
    assert list(answer.json()) == ["error"]
    assert line in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_a_full_queue_is_told(client, studio):
    waits = studio.desk.run(lambda tell: [tell(1) for _ in iter(int, 1)])
    next(waits)
    answer = client.post("/generate", json={"steps": 1})
    waits.close()
    assert answer.status_code == 503
    assert "as many wait as may (0)" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/generate", "/canvas"])
def test_running_out_of_memory_is_told(client, studio, monkeypatch, path):
    def render(*_, **how):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 GB")

    monkeypatch.setattr(studio.pipe, "render", render)
    answer = client.post(path, json={"steps": 2} | ({"size": [16, 32]} if "canvas" in path else {}))
    assert answer.status_code == 422
    assert answer.json() == {"error": "not enough memory; ask for fewer or smaller images"}


def test_bodies_names_and_other_sites_are_refused(client):
    assert client.post("/generate", content=b" " * 2**17).status_code == 413
    assert client.get("/model", headers={"host": "evil.example"}).status_code == 400
    for path in ("/generate", "/gradio_api/queue/join"):
        answer = client.post(path, json={}, headers={"origin": "https://evil.example"})
        assert (answer.status_code, answer.json()) == (403, {"error": "asked from another site"})
    assert client.get("/model", headers={"origin": "http://localhost:7860"}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/pictures/unknown/0.png",
        "/pictures/..%2f..%2fetc/passwd",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=pyproject.toml",
        "/file=/etc/passwd",
        "/config.json",
    ],
)
def test_no_path_leads_to_files(client, path):
    answer = client.get(path)
    assert answer.status_code in (403, 404)
    assert b"root:" not in answer.content


def test_the_page_of_the_api_needs_no_network(client):
    page = client.get("/docs").text
    links = [part.split('"')[0] for part in page.split('src="')[1:] + page.split('href="')[1:]]
    assert links
    assert all(link.startswith("/") and client.get(link).status_code == 200 for link in links)
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/model", "/generate", "/canvas"}
    assert "4 images, 20 steps" in described["info"]["description"]


def test_two_hundred_requests_leave_nothing_behind(client, studio, monkeypatch):
    monkeypatch.setattr(studio.shelf, "limit", 20_000)

    def some(first, count):
        for seed in range(first, first + count):
            asked = {"seeds": [seed], "steps": 1, "sampler": "euler"}
            assert client.post("/generate", json=asked).status_code == 200

    some(0, 100)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    some(100, 100)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 500_000
    assert studio.shelf.size <= 20_000
    assert len(studio.known) <= 64
    assert len(studio.desk.jobs) <= 1


def test_a_port_that_is_taken_is_told():
    first = server.bound(0)
    assert first.getsockname()[0] == "127.0.0.1"
    first.listen()
    with pytest.raises(ValueError, match=r"--port \d+ cannot be had .*; choose another"):
        server.bound(first.getsockname()[1])
    first.close()
    with pytest.raises(ValueError, match="--port 99999"):
        server.bound(99999)
