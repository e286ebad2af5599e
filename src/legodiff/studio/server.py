"""The server: the page and the API on one port of this machine, closed to other sites."""

import socket
from typing import cast
from urllib.parse import urlsplit

import gradio as gr
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse
from gradio.routes import App
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from legodiff.studio import api, html, page
from legodiff.studio.drawing import Studio

HOST = "127.0.0.1"
NAMES = [HOST, "localhost"]
LONGEST_BODY = 2**16  # bytes of a request to the API
LARGEST_UPLOAD = "2mb"  # of what was painted
GRACE = 2  # seconds that answers under way are waited for when the server stops


def app(studio: Studio) -> FastAPI:
    """The API at its paths, and the page at the root."""
    whole = api.build(studio)
    whole.add_middleware(_Guard)
    whole.add_middleware(TrustedHostMiddleware, allowed_hosts=NAMES)
    blocks = page.build(studio)
    most = 4 * (studio.limits.waiting + 1)  # of the page's own events; the desk bounds drawings
    blocks.queue(max_size=most, default_concurrency_limit=None, api_open=False)
    mounted = gr.mount_gradio_app(
        whole,
        blocks,
        path="/",
        server_name=HOST,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        max_file_size=LARGEST_UPLOAD,
        ssr_mode=False,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css=html.STYLE,
    )
    return cast(FastAPI, mounted)


class _Guard:
    """Refuses what is sent from pages of other sites, and bodies that are too long for the API."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        origin = dict(scope["headers"]).get(b"origin", b"").decode("latin-1")
        if origin and urlsplit(origin).hostname not in NAMES:
            refused = JSONResponse({"error": "asked from another site"}, 403)
            await refused(scope, receive, send)
            return
        length = 0

        async def counted() -> Message:
            nonlocal length
            message = await receive()
            length += len(message.get("body", b""))
            if length > LONGEST_BODY and scope["path"] in ("/generate", "/canvas"):
                raise HTTPException(413, f"at most {LONGEST_BODY:,} bytes")
            return message

        await self.app(scope, counted, send)


def bound(port: int) -> socket.socket:
    """A socket of this machine alone. Raises ValueError if the port cannot be had."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((HOST, port))
    except (OSError, OverflowError) as error:
        found.close()
        raise ValueError(f"--port {port} cannot be had ({error}); choose another") from error
    return found


def serve(studio: Studio, at: socket.socket) -> None:
    """Answers until it is stopped; Ctrl-C is how to do that, and no mistake."""
    try:
        Server(studio).run(sockets=[at])
    except KeyboardInterrupt:
        pass
    finally:
        studio.desk.close()


class Server(uvicorn.Server):
    """Stops soon, whoever is looking: it ends what would not end by itself, or not for long."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self.whole = studio, app(studio)
        config = uvicorn.Config(self.whole, log_level="warning", timeout_graceful_shutdown=GRACE)
        super().__init__(config)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.studio.desk.close()
        page_of(self.whole).stop_event.set()  # what open pages listen to, which has no end
        await super().shutdown(sockets)


def page_of(whole: FastAPI) -> App:
    """Gradio's own application within the whole."""
    (found,) = [
        one.app for one in whole.routes if isinstance(one, Mount) and isinstance(one.app, App)
    ]
    return found
