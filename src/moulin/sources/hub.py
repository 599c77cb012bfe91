"""Asks the model hub where a file is and what its digest must be.

The protocol (endpoint, token, offline switch, redirects) is `huggingface_hub`'s; the bytes are
fetched by `moulin.sources.download`, because that library no longer continues a download that
another process began (its temporary names are unique per process since 1.x).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from moulin.domain.errors import SourceError, SourceUnavailable
from moulin.domain.model import HubFile, HubRepository
from moulin.sources.download import Address

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFound:
    """What the hub states of a file: its digest, its size, the commit, and where the bytes are."""

    sha256: str
    size_bytes: int
    commit: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def address(self) -> Address:
        """Return what the download needs."""
        return Address(url=self.url, size_bytes=self.size_bytes, headers=self.headers)


def ask_hub(source: HubFile, timeout_s: float, endpoint: str = "") -> HubFound:
    """Return the hub's statement on a file; an empty `endpoint` means HF_ENDPOINT or the default.

    A token is taken from HF_TOKEN or the library's token file, sent to the hub and shown nowhere.

    Raises `SourceUnavailable` when the hub is out of reach, knows no such file, wants a token, or
    the extra is not installed; `SourceError` when it states no SHA-256 for the file.
    """
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # in its __all__ only lazily
    except ImportError as cause:
        raise SourceUnavailable(
            f"ask the hub for {source.address}: huggingface_hub is not installed",
            hint="pip install 'moulin[llm]'",
        ) from cause
    place = {"repo_id": source.repository, "filename": source.file}
    try:
        url = hf_hub_url(**place, revision=source.revision, endpoint=endpoint or None)
        found = get_hf_file_metadata(url, timeout=timeout_s, endpoint=endpoint or None)
        headers = build_hf_headers(library_name="moulin")
    except Exception as cause:
        # Broad on purpose: its transport errors changed class between majors.
        raise _refusal(source, cause) from cause
    sha256 = found.etag or ""
    if _SHA256.fullmatch(sha256) is None or not found.size or not found.commit_hash:
        raise SourceError(
            f"ask the hub for {source.address}: it states no SHA-256, size and commit for this file",
            hint="only files in large-file storage have a digest; choose such a file",
            details={"etag": sha256, "size_bytes": found.size or 0},
        )
    return HubFound(
        sha256=sha256,
        size_bytes=found.size,
        commit=found.commit_hash,
        url=hf_hub_url(**place, revision=found.commit_hash, endpoint=endpoint or None),
        headers=headers,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HubEntry:
    """One file of a repository; without a `sha256` its `git_sha1` is what it is held to."""

    name: str
    size_bytes: int
    sha256: str
    git_sha1: str
    address: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class HubListing:
    """What the hub states of a repository at one commit."""

    commit: str
    entries: tuple[HubEntry, ...]


def list_hub(source: HubRepository, timeout_s: float, endpoint: str = "") -> HubListing:
    """Return the hub's statement on every file of a repository; endpoint and token as `ask_hub`.

    Raises `SourceUnavailable` as `ask_hub` does; `SourceError` when it states no commit.
    """
    try:
        from huggingface_hub import HfApi, hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # in its __all__ only lazily
    except ImportError as cause:
        raise SourceUnavailable(
            f"ask the hub for {source.address}: huggingface_hub is not installed",
            hint="pip install 'moulin[llm]'",
        ) from cause
    try:
        found = HfApi(endpoint=endpoint or None, library_name="moulin").model_info(
            source.repository, revision=source.revision, timeout=timeout_s, files_metadata=True
        )
        headers = build_hf_headers(library_name="moulin")
    except Exception as cause:
        # Broad on purpose: its transport errors changed class between majors.
        raise _refusal(source, cause) from cause
    if not found.sha or not found.siblings:
        raise SourceError(f"ask the hub for {source.address}: it states no commit and files")
    commit = found.sha

    def entry(file: Any) -> HubEntry:
        url = hf_hub_url(
            source.repository, file.rfilename, revision=commit, endpoint=endpoint or None
        )
        size_bytes = file.size or 0
        return HubEntry(
            name=file.rfilename,
            size_bytes=size_bytes,
            sha256=file.lfs.sha256 if file.lfs else "",
            git_sha1=file.blob_id or "",
            address=Address(url=url, size_bytes=size_bytes, headers=headers),
        )

    return HubListing(commit=commit, entries=tuple(entry(file) for file in found.siblings))


def _refusal(source: HubFile | HubRepository, cause: Exception) -> SourceUnavailable:
    from huggingface_hub import errors

    what, hint = _short(cause), "check the network or HF_ENDPOINT, or choose another source"
    if isinstance(cause, errors.GatedRepoError):
        what, hint = "its licence has to be accepted first", "accept it on the hub and set HF_TOKEN"
    elif isinstance(cause, errors.RepositoryNotFoundError):
        what, hint = "there is no such repository, or it is private", "check the name or HF_TOKEN"
    elif isinstance(cause, errors.RevisionNotFoundError):
        what, hint = f"there is no revision {source.revision}", "check the revision"
    elif isinstance(cause, errors.EntryNotFoundError):
        what, hint = "there is no such file", "check the file name"
    elif isinstance(cause, errors.OfflineModeIsEnabled):
        what, hint = "HF_HUB_OFFLINE is set", "unset it or choose another source"
    return SourceUnavailable(
        f"ask the hub for {source.address}: {what}",
        hint=hint,
        details={"problem": what},
    )


def _short(cause: Exception) -> str:
    """Return the first line of a library's message; some run over several, with request ids."""
    lines = str(cause).strip().splitlines()
    return lines[0][:200] if lines else type(cause).__name__
