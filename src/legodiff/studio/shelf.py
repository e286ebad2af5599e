"""PNG files in memory, under names that cannot be guessed; the oldest make room for new ones."""

import hmac
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
    """Keeps pictures of at most ``limit`` bytes together; equal ones are one."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self.secret = secrets.token_bytes()
        self.lock = threading.Lock()
        self.pictures: OrderedDict[str, Picture] = OrderedDict()

    def put(self, png: bytes, name: str) -> str:
        """Where it is found from now on: a path below the server's root."""
        key = hmac.digest(self.secret, name.encode() + png, "sha256").hex()[:32]
        with self.lock:
            known = self.pictures.pop(key, None)
            self.size += 0 if known else len(png)
            self.pictures[key] = Picture(png, name)  # the newest
            while self.size > self.limit and len(self.pictures) > 1:
                _, old = self.pictures.popitem(last=False)
                self.size -= len(old.png)
        return f"/pictures/{key}/{name}"

    def get(self, path: str) -> Picture | None:
        """What was put there, if it is still there."""
        with self.lock:
            return self.pictures.get(_key(path))

    def has(self, path: str) -> bool:
        """Whether what was put there is still there."""
        return self.get(path) is not None

    def drop(self, path: str) -> None:
        """Forgets what nobody looks at any more."""
        with self.lock:
            old = self.pictures.pop(_key(path), None)
            self.size -= len(old.png) if old else 0


def _key(path: str) -> str:
    return path.split("/")[2]
