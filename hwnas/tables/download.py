"""Official benchmark files: their sources, and downloads that resume after an interruption."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from hwnas.files import data_folder, sync_folder

CHUNK = 1 << 20
TIMEOUT = 30
"""Seconds that a download waits for an answer of the server."""


@dataclass(frozen=True)
class Source:
    """An official file.

    Args:
        name: Name of the file, as published.
        converts: The sub-command of `hwnas data` that converts it.
        url: Address of the file.
        origin: Publisher of the file.
        size: Bytes; None: not known to us.
        checksums: Hex digests by algorithm of hashlib; empty where none is public.
        licence: Licence of the file.
    """

    name: str
    converts: str
    url: str
    origin: str
    size: int | None = None
    checksums: Mapping[str, str] = field(default_factory=dict)
    licence: str = "MIT"


_DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="

SOURCES = {
    source.name: source
    for source in (
        Source(
            name="NATS-tss-v1_0-3ffb9-simple.tar",
            converts="nasbench201",
            url=_DRIVE + "17_saCsj_krKjlCBLOJEpNtzPXArMCqxU",
            size=1_145_989_120,
            # The publishers give no checksum; this one and the size are those that users of the file quote.
            checksums={"sha256": "580fd8f3425fed9f495640b0f12ccb7744f89dec7aff263bd75aed37ab0b8bb6"},
            origin="D-X-Y/NATS-Bench",
        ),
        Source(
            name="NAS-Bench-201-v1_1-096897.pth",
            converts="nasbench201",
            url=_DRIVE + "16Y0UwGisiouVRxW-W5hEtbxmcHw_0hF_",
            size=5_003_180_601,
            # The publishers give the last six digits, in the file's name; users of the file quote the others.
            checksums={"md5": "55e847143ce1f7c2d89b676f6b096897"},
            origin="D-X-Y/NAS-Bench-201",
        ),
        Source(
            name="HW-NAS-Bench-v1_0.pickle",
            converts="hwnasbench",
            url="https://github.com/GATECH-EIC/HW-NAS-Bench/raw/"
            "393bb8a02554dcd28e091fbbdb4d7aefe590018a/HW-NAS-Bench-v1_0.pickle",
            origin="GATECH-EIC/HW-NAS-Bench",
        ),
        *(
            Source(
                name=name,
                converts="splits",
                url="https://raw.githubusercontent.com/D-X-Y/AutoDL-Projects/"
                f"a84f48388215d043d94c12c912e6a1defafca891/configs/nas-benchmark/{name}",
                size=size,
                origin="D-X-Y/AutoDL-Projects",
            )
            for name, size in (
                ("cifar-split.txt", 438_970),
                ("cifar100-test-split.txt", 78_970),
                ("imagenet-16-120-test-split.txt", 46_970),
            )
        ),
    )
}
"""Official files by name; a sub-command downloads the first of its files."""


def in_words(size: int | None) -> str:
    """A number of bytes in words, e.g. "1.1 GB"."""
    if size is None:
        return "size not published"
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def sources_of(converts: str) -> list[Source]:
    """The official files that a sub-command converts, first the one that it downloads."""
    return [source for source in SOURCES.values() if source.converts == converts]


def find_source(converts: str, *folders: Path) -> tuple[Path | None, str]:
    """An official file, or its unpacked folder, in the working folder, the data folder, or other folders.

    Returns:
        The path, or None; and the folders that were searched, in words.
    """
    places = list(dict.fromkeys(place.absolute() for place in (Path(), data_folder(), *folders)))
    for source in sources_of(converts):
        for place in places:
            for path in (place / source.name, place / source.name.removesuffix(".tar")):
                if path.exists():
                    return path, ""
    return None, " or ".join(map(str, places))


def by_hand(source: Source, looked: str) -> str:
    """Instructions for a manual download: name, size, address, and the setting that takes the file."""
    give = "put it there" if source.converts == "splits" else f"hwnas data {source.converts} source=<file>"
    return (
        f"{source.name} ({in_words(source.size)}) is not in {looked}; get it from {source.url} "
        f"and give it by hand: {give}"
    )


def download(source: Source, folder: Path, *, looked: str | None = None) -> Path:
    """Download an official file into a folder, or complete an interrupted download of it.

    The file is written as `<name>.part`. It gets its name when it is complete and its known checksums are
    right. Progress is shown on stderr.

    Args:
        source: The file to download.
        folder: Its folder; created if needed.
        looked: Folders that were searched before, in words for the message; None: only `folder`.

    Returns:
        Path of the file; one that exists is not downloaded again.

    Raises:
        ValueError: The download failed, or a checksum is wrong; says why, and how to get the file by hand.
        OSError: The folder cannot be written.
    """
    file = folder / source.name
    if file.is_file():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    if not (part.is_file() and part.stat().st_size == source.size):
        try:
            _fetch(source, part)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason: object = error
            if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
                reason = error.reason
            why = " ".join(str(reason).split()) or type(error).__name__
            raise ValueError(
                f"download failed ({why}): {by_hand(source, looked or str(folder.absolute()))}"
            ) from None
    for algorithm, expected in source.checksums.items():
        found = digest(part, algorithm)
        if found != expected:
            part.unlink()
            raise ValueError(
                f"{source.name} from {source.url} is not the file it should be: {algorithm} {found}, "
                f"not {expected}; it was deleted"
            )
    with part.open("rb+") as whole:
        os.fsync(whole.fileno())
    os.replace(part, file)
    sync_folder(folder)
    return file


def _fetch(source: Source, part: Path) -> None:
    """Download `part`, or what is missing of it."""
    start = part.stat().st_size if part.is_file() else 0
    if source.size is not None and start > source.size:
        start = 0
    try:
        answer = _open(source.url, start)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416 or not start:
            raise
        if error.headers.get("Content-Range", "") == f"bytes */{start}":
            return  # it is complete
        start = 0
        answer = _open(source.url, start)
    with answer:
        if answer.headers.get_content_type() == "text/html":
            raise http.client.HTTPException("the server sent a web page instead of the file")
        resumes = re.match(rf"bytes {start}-\d+/", answer.headers.get("Content-Range", ""))
        if start and (answer.status != 206 or not resumes):
            if answer.status == 206:
                part.unlink()
                raise http.client.HTTPException("the server sent another part of the file; try again")
            start = 0  # the server sends the whole file again
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else source.size
        if source.size is not None and total != source.size:
            raise http.client.HTTPException(f"the server has a file of {total:,} bytes, not {source.size:,}")
        with part.open("ab" if start else "wb") as out:
            got = _copy(answer, out, source.name, start, total)
    if total is not None and got < total:
        raise http.client.HTTPException(
            f"broke off after {got:,} of {total:,} bytes; the same command resumes there"
        )


def _open(url: str, start: int) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers={"User-Agent": "hwnas"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT)
    return answer


def _copy(answer: IO[bytes], out: IO[bytes], name: str, start: int, total: int | None) -> int:
    """Write the answer to the end of the file; returns the file's size."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        resumed = f", resuming after {start:,} bytes" if start else ""
        print(f"downloading {name} ({in_words(total)}){resumed}", file=sys.stderr)
    columns = (
        "{task.description}",
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    got = start
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=total, completed=start)
        while chunk := answer.read(CHUNK):
            out.write(chunk)
            got += len(chunk)
            progress.update(task, completed=got)
    return got


def digest(file: Path, algorithm: str) -> str:
    """Hex digest of a file, by an algorithm of hashlib."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()
