"""Copy a task's inputs to its folder before it starts, and its outputs away after it has ended.

Run by path, `python -I mover.py in|out PLAN`, by the program beside a task and in its environment:
`s3://` is fsspec's, and keys come from the task's own variables, which its secrets are; paths need
nothing but Python. It imports nothing of Moulin. Objects of a store are kept on the node under what the store says they are, with the
digest of what came, so that the next task of the project copies them from the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

BLOCK_BYTES = 8 << 20
AT_ONCE = 4
TELL_S = 5.0
CACHE_BYTES_MAX = 20 * 10**9
# What stays free on the cache's disk, whatever comes.
FREE_BYTES_MIN = 2 * 10**9


class Unmoved(Exception):
    """Why something cannot be copied, in words for the task's log."""


class Item(NamedTuple):
    """One file to copy: its address, its place below a folder, its size, what the store calls it."""

    address: str
    place: str
    size_bytes: int
    version: str


class Progress:
    """What was copied so far, told now and then and at the end."""

    def __init__(self, what: str, total_bytes: int) -> None:
        self.what = what
        self.total_bytes = total_bytes
        self.done_bytes = 0
        self.from_cache = 0
        self.begun = self.told = time.monotonic()
        self.lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count bytes, and say how far it is when that was not said for a while."""
        with self.lock:
            self.done_bytes += count
            now = time.monotonic()
            if now - self.told < TELL_S:
                return
            self.told = now
        say(f"{self.what}: {self.done_bytes:,} of {self.total_bytes:,} bytes")

    def end(self, files: int, digest: str) -> None:
        """Say what was copied."""
        took = time.monotonic() - self.begun
        cached = f", {self.from_cache} from this node's cache" if self.from_cache else ""
        say(
            f"{self.what}: {files} file(s), {self.done_bytes:,} bytes in {took:.1f} s{cached},"
            f" sha256 {digest}"
        )


def say(words: str) -> None:
    """Write a line to the task's log."""
    os.write(2, f"moulin: {words}\n".encode())


class Disk:
    """The file systems that this node has mounted, in those words of fsspec's that are used here."""

    def info(self, path: str) -> dict[str, Any]:
        """Return what is at a path, links followed; raises `Unmoved` for what can be no input."""
        state = os.stat(path)
        if stat.S_ISDIR(state.st_mode):
            return {"name": path, "size": 0, "type": "directory"}
        if not stat.S_ISREG(state.st_mode):
            raise Unmoved(f"{path}: it is neither a file nor a folder")
        return {"name": path, "size": state.st_size, "type": "file"}

    def find(self, folder: str) -> dict[str, dict[str, Any]]:
        """Return every file below a folder, linked folders' too; what is no file is left out.

        Raises `Unmoved` for a folder that is inside itself, and `OSError` for what cannot be read.
        """
        found = {}
        for root, folders, names in os.walk(folder, onerror=_not_read, followlinks=True):
            for path in (os.path.join(root, name) for name in folders):
                if f"{os.path.realpath(root)}/".startswith(f"{os.path.realpath(path)}/"):
                    raise Unmoved(f"{path}: it is a link to a folder that it is in")
            for path in (os.path.join(root, name) for name in names):
                if os.path.isfile(path) or not os.path.exists(path):
                    found[path] = self.info(path)
        return found

    def open(self, path: str, _mode: str, *, block_size: int) -> BinaryIO:
        """Open a file to read it in blocks."""
        return open(path, "rb", buffering=min(block_size, 1 << 20))


def _not_read(error: OSError) -> None:
    raise error


def file_system(address: str) -> Any:
    """Return the file system of an address; raises `Unmoved` where it needs what is not installed."""
    if not address.startswith("s3://"):
        return Disk()
    try:
        import fsspec

        # Only what the task was given: nobody else's configuration, no machine's own rights.
        os.environ.setdefault("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        os.environ.setdefault("AWS_CONFIG_FILE", os.devnull)
        os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
        is_anonymous = "AWS_ACCESS_KEY_ID" not in os.environ
        return fsspec.filesystem("s3", anon=is_anonymous, use_listings_cache=False)
    except ImportError as cause:
        raise Unmoved(
            f"{cause.name} is not installed on this node; `pip install 'moulin[s3]'` there"
        ) from cause


def bare(address: str) -> str:
    """Return an address as its file system takes it, and tells the names of what is there."""
    if address.startswith("s3://"):
        return address.removeprefix("s3://")
    return os.path.normpath(address.removeprefix("file://"))


@contextlib.contextmanager
def told_plainly(address: str) -> Iterator[None]:
    """Raise `Unmoved` for whatever a file system raises, in words that hold no key."""
    try:
        yield
    except Unmoved:
        raise
    except FileNotFoundError as cause:
        raise Unmoved(f"{address}: there is no such file or object") from cause
    except PermissionError as cause:
        raise Unmoved(f"{address}: access is refused; are the keys among `secrets`?") from cause
    except OSError as cause:
        raise Unmoved(f"{address}: {cause.strerror or type(cause).__name__}") from cause
    except Exception as cause:
        raise Unmoved(f"{address}: {type(cause).__name__}") from cause


def listed(files: Any, address: str) -> list[Item]:
    """Return the files at an address: one, or all below it; raises `Unmoved` for bad names."""
    path = bare(address)
    found = files.info(path)
    if found["type"] == "file":
        return [_item(found, "")]
    below = files.find(path) if isinstance(files, Disk) else files.find(path, detail=True)
    root = path.rstrip("/")
    items = [_item(each, str(name)[len(root) + 1 :]) for name, each in sorted(below.items())]
    for item in items:
        parts = PurePosixPath(item.place).parts
        if not parts or ".." in parts or parts[0] == "/":
            raise Unmoved(f"{address}: {item.address} would leave the folder")
    return items


def _item(found: dict[str, Any], place: str) -> Item:
    version = found.get("ETag") or found.get("mtime") or found.get("LastModified") or ""
    return Item(str(found["name"]), place, int(found["size"]), str(version).strip('"'))


def bring(plan: dict[str, Any], place: str, address: str) -> None:
    """Copy what is at an address to a place in the working directory; raises `Unmoved`."""
    with told_plainly(address):
        files = file_system(address)
        items = listed(files, address)
        progress = Progress(f"input {place}", sum(item.size_bytes for item in items))
        cache = Cache(plan["project"]) if address.startswith("s3://") else None

        def copy(item: Item) -> str:
            target = Path(place, item.place) if item.place else Path(place)
            target.parent.mkdir(parents=True, exist_ok=True)
            return _bring_one(files, item, target, cache, progress)

        if not items:
            raise Unmoved(f"{address}: there is nothing there")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            digests = list(pool.map(copy, items))
        progress.end(len(items), _digest_of_all(items, digests))


def _bring_one(
    files: Any, item: Item, target: Path, cache: Cache | None, progress: Progress
) -> str:
    kept = cache.find(item) if cache else None
    if kept is not None:
        digest = _copied(kept.path.open("rb"), target, progress)
        if digest == kept.digest:
            with progress.lock:
                progress.from_cache += 1
            return digest
        kept.drop()
        progress.add(-item.size_bytes)
    digest = _copied(files.open(item.address, "rb", block_size=BLOCK_BYTES), target, progress)
    if target.stat().st_size != item.size_bytes:
        raise Unmoved(f"{item.address}: it changed while it was copied")
    if cache is not None:
        cache.keep(item, target, digest)
    return digest


def _copied(source: BinaryIO, target: Path, progress: Progress) -> str:
    """Copy a stream to a file that appears whole; return the SHA-256 of what it holds."""
    digest = hashlib.sha256()
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with source, part.open("wb") as sink:
            while block := source.read(BLOCK_BYTES):
                sink.write(block)
                digest.update(block)
                progress.add(len(block))
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return digest.hexdigest()


def _digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _digest_of_all(items: list[Item], digests: list[str]) -> str:
    """Return one file's digest, or that of `sha256sum`'s lines of all of them."""
    if len(items) == 1 and not items[0].place:
        return digests[0]
    lines = [f"{digest}  {item.place}\n" for item, digest in zip(items, digests, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class Kept(NamedTuple):
    """A file of the cache and the digest of what it held when it came."""

    path: Path
    digest: str

    def drop(self) -> None:
        """Remove it."""
        self.path.unlink(missing_ok=True)


class Cache:
    """Objects that tasks of one project had on this node; a folder that only this user may enter."""

    def __init__(self, project: str) -> None:
        self._project = project
        default = f"/var/tmp/moulin-{os.getuid()}/inputs"  # noqa: S108 - checked to be ours
        self._folder = Path(os.environ.get("MOULIN_INPUT_CACHE", default))
        self._limit_bytes = int(os.environ.get("MOULIN_INPUT_CACHE_BYTES", CACHE_BYTES_MAX))
        self._is_usable = self._limit_bytes > 0 and self._opened()

    def find(self, item: Item) -> Kept | None:
        """Return an object as it was kept, None when it was not, or is another by now."""
        if not self._is_usable or not item.version:
            return None
        for path in self._folder.glob(f"{self._name(item)}.*"):
            with contextlib.suppress(OSError):
                if path.stat().st_size == item.size_bytes:
                    os.utime(path)
                    return Kept(path, path.suffix[1:])
        return None

    def keep(self, item: Item, source: Path, digest: str) -> None:
        """Keep a copy where there is room, in the place of those that were used longest ago."""
        if not self._is_usable or not item.version or item.size_bytes > self._limit_bytes:
            return
        part = self._folder / f".{self._name(item)}.{os.getpid()}"
        try:
            self._make_room(item.size_bytes)
            if shutil.disk_usage(self._folder).free < item.size_bytes + FREE_BYTES_MIN:
                return
            shutil.copyfile(source, part)
            part.replace(self._folder / f"{self._name(item)}.{digest}")
        except OSError as cause:
            say(f"nothing is kept on this node: {cause.strerror}")
            part.unlink(missing_ok=True)

    def _make_room(self, size_bytes: int) -> None:
        found = []
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                state = path.stat()
                found.append((state.st_mtime_ns, state.st_size, path))
        total = sum(size for _, size, _ in found) + size_bytes
        for _, size, path in sorted(found):
            if total <= self._limit_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _name(self, item: Item) -> str:
        words = (self._project, item.address, item.version, str(item.size_bytes))
        return hashlib.sha256("\0".join(words).encode()).hexdigest()[:40]

    def _opened(self) -> bool:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self._folder.stat()
        except OSError:
            return False
        is_private = not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        return found.st_uid == os.getuid() and is_private


def save(place: str, address: str) -> None:
    """Copy a file or folder of the working directory to an address; raises `Unmoved`."""
    source = Path(place)
    if source.is_dir():
        root = str(source)
        with told_plainly(root):
            below = sorted(Disk().find(root))
        pairs = [(Path(path), path[len(root) :]) for path in below]
    elif source.exists():
        pairs = [(source, "")]
    else:
        raise Unmoved(f"output {place}: the task left no such file or folder")
    with told_plainly(address):
        files, path = file_system(address), bare(address).rstrip("/")
        progress = Progress(f"output {place}", sum(each.stat().st_size for each, _ in pairs))

        def copy(pair: tuple[Path, str]) -> str:
            target = f"{path}{pair[1]}"
            if not address.startswith("s3://"):
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                return _copied(pair[0].open("rb"), Path(target), progress)
            files.put_file(str(pair[0]), target)
            progress.add(pair[0].stat().st_size)
            return _digest_of(pair[0])

        with ThreadPoolExecutor(AT_ONCE) as pool:
            digests = list(pool.map(copy, pairs))
        items = [Item("", place[1:], 0, "") for _, place in pairs]
        progress.end(len(pairs), _digest_of_all(items, digests))


def main() -> int:
    """Copy all of one direction; return 0 when everything was copied."""
    doing, plan_path = sys.argv[1:]
    plan = json.loads(Path(plan_path).read_bytes())
    try:
        for place, address in sorted(plan["inputs" if doing == "in" else "outputs"].items()):
            if doing == "in":
                bring(plan, place, address)
            else:
                save(place, address)
    except Unmoved as cause:
        say(str(cause))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
