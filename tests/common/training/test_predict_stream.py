"""``spectral predict --windows`` of streams: a local HTTP server, a UDP sender, named pipes, a generated picture."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch

from common.datamodules.errors import VideoReadError
from common.datamodules.video_clips import ClipSpec
from common.datamodules.video_reader import open_video
from common.datamodules.video_stream import VideoStream, is_stream
from common.training import predict_stream
from common.training.predict_windows import list_windows, window_views
from tests.common.training.colours import SPEC, rows_of, write_colours
from tests.media import picture, write_video


class Server(ThreadingHTTPServer):
    """Serves the files of a folder once, from start to end, without ranges. The query of a URL says how:

    ``slow`` in twenty parts, ``stall`` half of it and then nothing, ``sized`` with its length, ``cut`` less than the
    length that it states.
    """

    daemon_threads = True
    requests = 0

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.go_on = folder, threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        name, _, how = self.path[1:].partition("?")
        if not (self.server.folder / name).is_file():
            return self.send_error(404)
        data = (self.server.folder / name).read_bytes()
        self.send_response(200)
        if how in ("sized", "cut"):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        parts = [data[: len(data) * 6 // 10]] if how in ("cut", "stall") else [data]
        if how == "slow":
            step = len(data) // 20 + 1
            parts = [data[start : start + step] for start in range(0, len(data), step)]
        try:
            for part in parts:
                self.wfile.write(part)
                time.sleep(0.05 if how == "slow" else 0)
            if how == "stall":
                self.server.go_on.wait(30)
        except ConnectionError:  # the reader has seen enough
            pass

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.go_on.set()
        server.shutdown()


def write_long(path: Path, **options: Any) -> Path:
    """Six seconds of ten frames, readable from start to end, in packets of which each second begins anew."""
    more = {"container_options": {"movflags": "frag_keyframe+empty_moov"}} if path.suffix == ".mp4" else {}
    return write_video(path, num_frames=60, fps=10, gop=10, **more, **options)


@pytest.mark.parametrize("how", ["a.mp4", "a.ts", "a.mp4?slow"])
@pytest.mark.parametrize("options", [["--windows", 1.1, "--stride", 0.4], ["--windows", 0.5, "--stride", 2]])
def test_a_url_is_predicted_as_the_file(predict, server, capsys, how, options) -> None:
    file = write_long(Path(how.partition("?")[0]))
    options += ["--smooth", 3]
    assert predict(file, *options, "--csv", "file.csv") == 0
    capsys.readouterr()
    files = ["--csv", "url.csv", "--json", "url.json", "--features", "url.npz"]
    assert predict(f"{server.url}/{how}", *options, *files) == 0
    url, expected = rows_of("url.csv"), rows_of("file.csv")
    assert {row.pop("path") for row in url} == {f"{server.url}/{how}"}
    assert [row | {"path": "a"} for row in url] == [row | {"path": "a"} for row in expected]
    assert [str(row["start"]) for row in json.loads(Path("url.json").read_text())] == [row["start"] for row in url]
    assert len(np.load("url.npz")["features"]) == len(url)
    assert capsys.readouterr().out.count(" s  ") == len(url)


def test_windows_of_a_stream_are_those_of_the_file() -> None:
    rng = np.random.default_rng(0)
    images = [picture(index) for index in range(40)]
    for spec in (SPEC, ClipSpec(4, "dense", 2, num_clips=2, num_crops=3, crop_size=16, resize=20)):
        for length, stride in ((1.0, 1.0), (2.0, 0.3), (0.05, 0.7), (0.5, 3.0), (100.0, 1.0)):
            times = np.cumsum(rng.choice([0.04, 0.1, 1.5], 40)).tolist()
            times = [now - times[0] for now in times]
            windows = list(list_windows(times, times[-1] + 0.1, length, stride))
            frames, video = zip(times, images, strict=True), SimpleNamespace(fps=10)
            found = list(predict_stream.stream_windows(frames, length, stride, spec, video))
            assert [(w.start, w.end, w.stop - w.first) for w, _ in found] == [
                (w.start, w.end, w.stop - w.first) for w in windows
            ]
            for (_, views), same in zip(found, window_views(iter(images), windows, spec), strict=True):
                assert torch.equal(views, same)


def test_rows_come_before_the_end(predict, server) -> None:
    write_long(Path("a.ts"))
    at_stall: list[int] = []

    def look() -> None:
        limit = time.monotonic() + 20
        while time.monotonic() < limit and not (Path("a.csv").exists() and len(rows_of("a.csv")) >= 2):
            time.sleep(0.05)
        at_stall.append(len(rows_of("a.csv")))
        server.go_on.set()  # the server ends the stream in the middle of a packet

    threading.Thread(target=look, daemon=True).start()
    assert predict(f"{server.url}/a.ts?stall", "--windows", 1, "--csv", "a.csv", "--timeout", 25) == 0
    assert at_stall[0] >= 2
    assert len(rows_of("a.csv")) > at_stall[0]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a.ts?stall", "no frame for 1 seconds; --timeout SECONDS waits longer."),
        ("a.mp4?cut", "breaks off: "),
        ("none.mp4", "not a readable video: Server returned 404 Not Found."),
        ("text.mp4?sized", "not a readable video: Invalid data found"),
        ("sound.ts?sized", "no video stream (streams: audio)."),
    ],
)
def test_a_source_that_fails_is_one_clear_error(predict, server, capsys, path, message) -> None:
    for name in ("a.ts", "a.mp4"):
        write_long(Path(name))
    Path("text.mp4").write_text("no video")
    with av.open("sound.ts", "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux([*stream.encode(frame), *stream.encode()])
    url = f"{server.url}/{path}".replace("//", "//user:secret@")
    assert predict(url, "--windows", 1, "--csv", "a.csv", "--timeout", 1 if "stall" in path else 20) == 1
    printed = capsys.readouterr()
    assert "secret" not in printed.out + Path("a.csv").read_text()
    assert next(line for line in printed.out.splitlines() if "error" in line).startswith(
        f"error: {server.url}/{path}: {message}"
    )
    rows = rows_of("a.csv")
    assert [bool(row["error"]) for row in rows] == [False] * (len(rows) - 1) + [True]
    assert (len(rows) > 2) == path.endswith(("stall", "cut"))


def test_nobody_listens(predict, capsys) -> None:
    assert predict("http://127.0.0.1:1/a.mp4", "--windows", 1, "--timeout", 5) == 1
    assert "error: http://127.0.0.1:1/a.mp4: not a readable video: Connection refused" in capsys.readouterr().out
    assert predict("udp://127.0.0.1:9", "--windows", 1, "--timeout", 0.5) == 1
    assert "error: udp://127.0.0.1:9: no frame for 0.5 seconds" in capsys.readouterr().out


def test_udp(predict, capsys) -> None:
    """The sender starts before and goes on after; the receiver joins between two keyframes."""
    done = threading.Event()

    def send() -> None:
        with av.open("udp://127.0.0.1:23457?pkt_size=1316", "w", format="mpegts") as container:
            stream = container.add_stream("libx264", rate=50, options={"tune": "zerolatency", "g": "25"})
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            for index in range(1500):
                if done.wait(0.005):
                    break
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index), format="rgb24")))

    sender = threading.Thread(target=send)
    sender.start()
    try:
        time.sleep(0.2)
        assert predict("udp://127.0.0.1:23457", "--windows", 1, "--seconds", 3, "--csv", "a.csv") == 0
    finally:
        done.set()
        sender.join()
    assert [row["end"] for row in rows_of("a.csv")] == ["1.0", "2.0", "3.0"]


@pytest.mark.parametrize("name", ["a.ts", "a.mkv"])
def test_a_named_pipe(predict, name) -> None:
    file = write_long(Path(name))
    os.mkfifo("pipe")
    threading.Thread(target=lambda: Path("pipe").write_bytes(file.read_bytes()), daemon=True).start()
    assert predict("pipe", "--windows", 2, "--csv", "a.csv") == 0
    assert [row["end"] for row in rows_of("a.csv")] == ["2.0", "4.0", "6.0"]


def test_a_pipe_that_nobody_writes_to(predict, capsys) -> None:
    os.mkfifo("pipe")
    assert predict("pipe", "--windows", 2, "--timeout", 0.5) == 1
    assert "error: pipe: no frame for 0.5 seconds" in capsys.readouterr().out
    with open("pipe", "wb"):  # lets the thread that opens it end
        pass


def test_device_inputs_of_ffmpeg(predict, capsys) -> None:
    """The picture that FFmpeg generates never ends. There is no camera; /dev/null is refused as one."""
    camera = ["testsrc=size=64x48:rate=10", "--format", "lavfi", "--windows", 1]
    assert predict(*camera, "--seconds", 3.5, "--top", 1, "--csv", "a.csv") == 0
    assert [row["end"] for row in rows_of("a.csv")] == ["1.0", "2.0", "3.0", "3.5"]
    assert capsys.readouterr().out.startswith("    0.00 to     1.00 s  ")
    assert predict(*camera, "--seconds", 0.001) == 0
    assert "lasts 0.10 s, less than a window of 1 s; it is one window" in capsys.readouterr().out
    assert predict("/dev/null", "--windows", 1) == 1
    assert "error: /dev/null: not a readable video: " in capsys.readouterr().out
    assert predict("x", "--format", "none", "--windows", 1) == 1
    assert "error: x: not a readable video: no container format 'none'." in capsys.readouterr().out
    assert predict("/dev/video99", "--windows", 1) == 1
    assert "/dev/video99 does not exist" in capsys.readouterr().out


@pytest.mark.slow
def test_ctrl_c_keeps_everything(predict) -> None:
    command = ["predict", "--checkpoint", "net", "--allow", "tests", "--device", "cpu", "--format", "lavfi"]
    command += ["testsrc=rate=10,realtime", "--windows", "0.5", "--smooth", "3", "--csv", "a.csv", "--json", "a.json"]
    code = "import sys; from common.training.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]
    process.send_signal(signal.SIGINT)
    lines += process.stdout.readlines()
    assert process.wait(30) == 130
    rows = rows_of("a.csv")
    assert len(rows) >= 3, "the last window, which smoothing holds back, is there too"
    assert len(rows) == len([line for line in lines if " s  " in line])
    assert len(json.loads(Path("a.json").read_text())) == len(rows)


def test_memory_does_not_grow(monkeypatch) -> None:
    crops: list[int] = []
    make = predict_stream.stack_views

    def counted(held: list[torch.Tensor], *args: Any) -> torch.Tensor:
        crops.append(len(held))
        return make(held, *args)

    monkeypatch.setattr(predict_stream, "stack_views", counted)
    frames = ((index / 10, np.zeros((16, 16, 3), np.uint8)) for index in range(5000))
    video: Any = SimpleNamespace(fps=10)
    assert sum(1 for _ in predict_stream.stream_windows(frames, 2.0, 0.5, SPEC, video)) == 997
    assert max(crops) <= 22


def test_a_clock_that_jumps() -> None:
    stream = VideoStream("http://none", timeout=5)
    image = np.zeros((2, 2, 3), np.uint8)
    given = [1000.0, 1000.1, 1000.4, 2.0, 2.1, 90000.0, 90000.1]
    stream.fps, stream._wait = 10, lambda: ((now, image) for now in given)  # type: ignore[method-assign]
    times = [now for now, _ in stream]
    assert np.allclose(np.diff(times), [0.1, 0.3, 0.1, 0.1, 0.1, 0.1])
    assert all(after > before for before, after in pairwise(times))


def test_a_reader_that_stops_early_leaves_no_thread(server, tmp_path) -> None:
    write_long(tmp_path / "a.ts")
    with VideoStream(f"{server.url}/a.ts", timeout=20) as stream:
        assert next(iter(stream))[0] == 0
    assert not stream._thread.is_alive()


def test_a_file_never_opens_a_url(predict, server, tmp_path, capsys) -> None:
    """What stands in a manifest, list, playlist or folder is the name of a file."""
    write_long(tmp_path / "a.mp4")
    for name in (f"{server.url}/a.mp4", "concat:/etc/passwd", f"file:{tmp_path}/a.mp4", "pipe:0"):
        with pytest.raises(VideoReadError, match="no such file"):
            open_video(name)
        assert not Path(name).exists()
    Path("list.txt").write_text(f"{server.url}/a.mp4\n")
    assert predict("list.txt", "--windows", 1) == 1
    assert "does not exist" in capsys.readouterr().out
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXTINF:6,\n{server.url}/a.mp4\n#EXT-X-ENDLIST\n"
    Path("local.m3u8").write_text(playlist)
    assert predict("local.m3u8", "--windows", 1) == 1
    assert server.requests == 0
    assert predict("concat:/etc/passwd", "--windows", 1) == 1
    assert "concat:/etc/passwd does not exist" in " ".join(capsys.readouterr().out.split())
    Path("concat:a.mp4").write_bytes(Path("a.mp4").read_bytes())  # a strange name of a file
    with open_video("concat:a.mp4") as video:
        assert video.num_frames == 60


def test_a_playlist_from_the_network_opens_no_file(predict, server, capsys) -> None:
    write_long(Path("a.ts"))
    for name in ("remote", "local"):
        source = f"file://{Path.cwd()}/a.ts" if name == "local" else "a.ts"
        text = f"#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXTINF:6,\n{source}\n#EXT-X-ENDLIST\n"
        Path(f"{name}.m3u8").write_text(text)
    assert predict(f"{server.url}/remote.m3u8", "--windows", 2, "--csv", "a.csv") == 0
    assert [row["end"] for row in rows_of("a.csv")] == ["2.0", "4.0", "6.0"]
    assert predict(f"{server.url}/local.m3u8", "--windows", 2, "--timeout", 5) == 1
    assert "error: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["http://h/a"], "http://h/a is a stream; add --windows SECONDS"),
        (["http://u:p@h/a", "in.mp4", "--windows", 1], "http://h/a is a stream, and the paths are 2; give it alone"),
        (["rtsp://h/a", "--windows", 1, "--video", "x.mp4"], "--video reads the video twice, and rtsp://h/a is"),
        (["in.mp4", "--windows", 1, "--seconds", 3], "--seconds is for a stream, and the paths are files"),
        (["http://h/a", "--windows", 1, "--seconds", 0], "--seconds is 0; it must be at least 0.001 seconds"),
        (["http://h/a", "--windows", 1, "--timeout", 0], "--timeout is 0; it must be at least 0.001 seconds"),
    ],
)
def test_wrong_options_are_said_before_a_stream_is_opened(predict, capsys, args, message) -> None:
    write_colours(Path("in.mp4"), ["red"], 1)
    assert predict(*args) == 1
    assert message in capsys.readouterr().err


def test_what_is_a_stream(tmp_path) -> None:
    assert all(map(is_stream, ("http://a/b.mp4", "RTSP://a", "udp://@:1234", "/dev/null")))
    assert not any(map(is_stream, ("a.mp4", "file:///a.mp4", "concat://a", "http:/a", str(tmp_path), "none")))
