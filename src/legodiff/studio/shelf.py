"""PNG files in memory, under names that cannot be guessed; the oldest make room for new ones."""

import secrets
import threading
from collections import OrderedDict
from typing import NamedTuple


class Picture(NamedTuple):
    """A file to be shown or downloaded."""

    png: bytes
    name: str
    """What it is called when it is downloaded."""


class Shelf:
    """Keeps pictures of at most ``limit`` bytes together."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self.lock = threading.Lock()
        self.pictures: OrderedDict[str, Picture] = OrderedDict()

    def put(self, png: bytes, name: str) -> str:
        """Where it is found from now on: a path below the server's root."""
        key = secrets.token_urlsafe(16)
        with self.lock:
            self.pictures[key] = Picture(png, name)
            self.size += len(png)
            while self.size > self.limit and len(self.pictures) > 1:
                _, old = self.pictures.popitem(last=False)
                self.size -= len(old.png)
        return f"/pictures/{key}/{name}"

    def get(self, key: str) -> Picture | None:
        """What has this key, if it is still there."""
        with self.lock:
            return self.pictures.get(key)

    def has(self, path: str) -> bool:
        """Whether what was put there is still there."""
        return self.get(path.split("/")[2]) is not None
