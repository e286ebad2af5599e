"""The server in a process of its own, stopped from outside, and what the command hands it."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from legodiff import LegoPipeline
from legodiff.studio import server
from legodiff.studio.elsewhere import Opened

SOON = 60  # seconds, on a machine that is busy with other tests


@pytest.fixture
def studio(model):
    """A studio in a process; gives (process, port)."""
    words = [sys.executable, "-m", "legodiff", "studio", model, "--port", "0", "--waiting", "4"]
    environment = os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    said = process.stdout.readline()
    port = int(re.search(r"127\.0\.0\.1:(\d+)", said)[1])
    while not listens(port):
        time.sleep(0.1)
    yield process, port
    process.kill()
    process.communicate()


def listens(port):
    with socket.socket() as visitor:
        return visitor.connect_ex(("127.0.0.1", port)) == 0


def ask(port, method, path, body=None):
    """Sends a request, and does not wait for the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SOON)
    connection.request(method, path, body, {"content-type": "application/json"})
    return connection


def open_page(port):
    """What an open page holds on to."""
    stream = ask(port, "GET", "/gradio_api/heartbeat/visitor").getresponse()
    assert stream.readline() == b"data: ALIVE\n"
    return stream


def stopped(process):
    """Its exit code and what it said, after one Ctrl-C."""
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=SOON)
    return process.returncode, said


def test_one_ctrl_c_stops_it_while_a_page_is_open(studio):
    process, port = studio
    stream = open_page(port)
    assert stopped(process) == (0, "")
    stream.close()


def test_one_ctrl_c_stops_what_is_drawn_and_what_waits(studio):
    process, port = studio
    stream = open_page(port)
    large = '{"size": [2048, 2048], "steps": 100}'  # takes minutes
    drawings = [ask(port, "POST", "/canvas", large) for _ in range(2)]
    assert ask(port, "GET", "/model").getresponse().status == 200
    assert stopped(process) == (0, "")
    for drawing in drawings:
        answer = drawing.getresponse()
        assert answer.status == 503
        assert b"this studio is being stopped" in answer.read()
    stream.close()


def test_how_the_model_is_opened_is_told_to_the_studio(model, call, monkeypatch):
    handed = []
    command = sys.modules["legodiff.cli.studio"]
    pipe = LegoPipeline.from_pretrained(model)
    monkeypatch.setattr(command, "open_pipeline", lambda *how: pipe)
    monkeypatch.setattr(server, "serve", lambda studio, at: (handed.append(studio), at.close()))
    words = ["--weights", "raw", "--vae", "folder", "--precision", "bf16"]
    assert call("studio", model, "--port", "0", *words)[0] == 0
    assert handed[0].opened == Opened(model, "raw", "folder", "bf16")
