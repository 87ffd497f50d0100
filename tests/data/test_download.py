from __future__ import annotations

import dataclasses
import hashlib
import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hwnas.cli.data import command
from hwnas.tables import download as module
from hwnas.tables.download import SOURCES, Source, by_hand, download, find_source, in_words, sources_of

CONTENT = bytes(range(256)) * 20_000  # 5 MB
NAME = "official.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT at /file, as servers do; other paths do what servers should not."""

    ranges: list[str | None]

    def do_GET(self) -> None:
        self.ranges.append(self.headers.get("Range"))
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if self.path == "/page":
            self.answer(200, b"<html>quota exceeded</html>", "text/html; charset=utf-8")
        elif self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/file")
            self.end_headers()
        elif self.path == "/missing":
            self.answer(404, b"")
        elif self.path == "/whole":
            self.answer(200, CONTENT)
        elif self.path == "/breaks":
            self.answer(206 if start else 200, CONTENT[start:], start=start, sent=1_500_000)
        elif self.path == "/wrong":
            self.answer(200, CONTENT[::-1])
        elif self.path == "/elsewhere" and start:
            self.answer(206, CONTENT[start + 1 :], start=start + 1)
        elif start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.answer(206 if start else 200, CONTENT[start:], start=start)

    def answer(
        self,
        status: int,
        body: bytes,
        kind: str = "application/octet-stream",
        *,
        start: int = 0,
        sent: int | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(CONTENT)}")
        self.end_headers()
        self.wfile.write(body[:sent])

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Clients may hang up."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Handler, "ranges", [], raising=False)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with Server(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def source(url: str, *, known: bool = True) -> Source:
    return Source(
        name=NAME,
        converts="hwnasbench",
        url=url,
        size=len(CONTENT) if known else None,
        checksums={"sha256": hashlib.sha256(CONTENT).hexdigest()} if known else {},
        licence="MIT",
        origin="nobody",
    )


def part(folder: Path, content: bytes) -> Path:
    file = folder / f"{NAME}.part"
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("path", ["/file", "/moved", "/whole"])
def test_a_file_is_fetched_once(
    server: str, path: str, known: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "folder"
    file = download(source(server + path, known=known), folder)
    assert file == folder / NAME
    assert file.read_bytes() == CONTENT
    assert [other.name for other in folder.iterdir()] == [NAME]
    assert capsys.readouterr() == ("", f"downloading {NAME} (5.1 MB)\n")
    requests = len(Handler.ranges)
    assert download(source(server + path, known=known), folder) == file
    assert len(Handler.ranges) == requests


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("length", [1, 1_000_000, len(CONTENT) - 1, len(CONTENT)])
def test_a_broken_download_goes_on(server: str, length: int, known: bool, tmp_path: Path) -> None:
    part(tmp_path, CONTENT[:length])
    assert download(source(server + "/file", known=known), tmp_path).read_bytes() == CONTENT
    assert [other.name for other in tmp_path.iterdir()] == [NAME]
    expected = [] if known and length == len(CONTENT) else [f"bytes={length}-"]
    assert Handler.ranges == expected


def test_it_breaks_off_and_goes_on(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    breaking = source(server + "/breaks")
    for got in ("1,500,000", "3,000,000", "4,500,000"):
        with pytest.raises(ValueError, match=f"broke off after {got} of 5,120,000 bytes; the same command"):
            download(breaking, tmp_path)
        assert [other.name for other in tmp_path.iterdir()] == [f"{NAME}.part"]
    assert download(breaking, tmp_path).read_bytes() == CONTENT
    assert Handler.ranges == [None, "bytes=1500000-", "bytes=3000000-", "bytes=4500000-"]
    assert "resuming after 4,500,000 bytes" in capsys.readouterr().err


def test_a_server_that_cannot_go_on_sends_all_again(server: str, tmp_path: Path) -> None:
    part(tmp_path, b"another beginning")
    assert download(source(server + "/whole"), tmp_path).read_bytes() == CONTENT
    (tmp_path / NAME).unlink()
    for length in (len(CONTENT) + 1, len(CONTENT) + 5000):  # longer than the file
        part(tmp_path, bytes(length))
        assert download(source(server + "/file", known=False), tmp_path).read_bytes() == CONTENT
        (tmp_path / NAME).unlink()
        part(tmp_path, bytes(length))
        assert download(source(server + "/file"), tmp_path).read_bytes() == CONTENT
        (tmp_path / NAME).unlink()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/missing", r"download failed \(HTTP Error 404: Not Found\)"),
        ("/page", r"download failed \(the server sent a web page instead of the file\)"),
        ("/wrong", r"is not the file it should be: sha256 [0-9a-f]{64}, not [0-9a-f]{64}; it was deleted"),
    ],
)
def test_what_is_not_the_file_is_not_kept(server: str, path: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        download(source(server + path), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_parts_that_do_not_fit_are_not_kept(server: str, tmp_path: Path) -> None:
    part(tmp_path, b"x" + CONTENT[1:1000])
    with pytest.raises(ValueError, match="is not the file it should be: sha256"):
        download(source(server + "/file"), tmp_path)
    assert list(tmp_path.iterdir()) == []
    part(tmp_path, CONTENT[:1000])
    with pytest.raises(ValueError, match="another part of the file"):
        download(source(server + "/elsewhere"), tmp_path)
    assert list(tmp_path.iterdir()) == []
    other = dataclasses.replace(source(server + "/file"), size=7)
    with pytest.raises(ValueError, match="the server has a file of 5,120,000 bytes, not 7"):
        download(other, tmp_path)


def closed() -> str:
    """An address where nobody answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}/file"


def test_without_a_network_one_line_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = closed()
    official = dataclasses.replace(SOURCES["NATS-tss-v1_0-3ffb9-simple.tar"], url=url)
    monkeypatch.setitem(SOURCES, official.name, official)
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    assert command(["nasbench201", "download"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "hwnas data: error: download failed ([Errno 111] Connection refused): "
        f"NATS-tss-v1_0-3ffb9-simple.tar (1.1 GB) is not in {tmp_path} or {tmp_path / 'data'}; "
        f"get it from {url} and give it by hand: hwnas data nasbench201 source=<file>\n"
    )


def test_a_file_is_fetched_and_converted(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    official = dataclasses.replace(SOURCES["HW-NAS-Bench-v1_0.pickle"], url=server + "/file")
    monkeypatch.setitem(SOURCES, official.name, official)
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert command(["hwnasbench", "download"]) == 1  # what is served is no pickle
    err = capsys.readouterr().err.splitlines()
    assert err[0] == "downloading HW-NAS-Bench-v1_0.pickle (5.1 MB)"
    assert "HW-NAS-Bench-v1_0.pickle is not a readable pickle" in err[1]
    assert find_source("hwnasbench") == (tmp_path / "HW-NAS-Bench-v1_0.pickle", "")


def test_a_folder_that_cannot_be_written(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        download(source(server + "/file"), tmp_path / "file")
    assert Handler.ranges == []


def test_official_files() -> None:
    assert [source.name for source in sources_of("nasbench201")] == [
        "NATS-tss-v1_0-3ffb9-simple.tar",
        "NAS-Bench-201-v1_1-096897.pth",
    ]
    for official in SOURCES.values():
        assert official.url.startswith("https://")
        assert official.licence == "MIT"
        for algorithm, value in official.checksums.items():
            assert len(value) == 2 * hashlib.new(algorithm).digest_size
    assert SOURCES["NAS-Bench-201-v1_1-096897.pth"].checksums["md5"].endswith("096897")
    assert SOURCES["HW-NAS-Bench-v1_0.pickle"].checksums == {}  # none is public
    assert "(size not published) is not in here; get it from https://github.com/GATECH-EIC" in by_hand(
        SOURCES["HW-NAS-Bench-v1_0.pickle"], "here"
    )
    sizes = (None, 0, 999, 1000, 2_500_000, 1_145_989_120)
    assert [in_words(size) for size in sizes] == [
        "size not published",
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "2.5 MB",
        "1.1 GB",
    ]
    assert module.TIMEOUT <= 60
