"""``spectral predict`` of long videos: windows, features, JSON and videos with captions, on files of known colours."""

from __future__ import annotations

import io
import json
import resource
import sys
import weakref
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pytest
import torch

from common.datamodules.video_clips import ClipSpec, make_views
from common.training import predict_windows
from common.training.predict_windows import list_windows, smooth, window_views
from tests.common.training.colours import COLOURS, SPEC, rows_of, write_colours
from tests.media import decode_all, picture, write_video


@pytest.mark.parametrize("name", ["two.mp4", "two.webm", "odd.mp4"])
def test_each_half_has_its_class(predict, name) -> None:
    video = write_colours(Path(name), ["red", "blue"], size=(37, 51) if name == "odd.mp4" else (48, 64))
    assert predict(video, "--windows", 1, "--csv", "a.csv", "--json", "a.json", "--features", "a.npz") == 0
    rows = rows_of("a.csv")
    assert [(float(row["start"]), float(row["end"]), row["top1"]) for row in rows] == [
        *((0, 1, "red"), (1, 2, "red"), (2, 3, "blue"), (3, 4, "blue"))
    ]
    assert list(rows[0]) == ["path", "start", "end", "top1", "p1", "top2", "p2", "top3", "p3", "error"]
    assert all(float(row["p1"]) > 0.9 for row in rows)
    content = json.loads(Path("a.json").read_text())
    assert [{key: str(value) for key, value in row.items()} for row in content] == rows
    arrays = np.load("a.npz")
    assert set(arrays) == {"path", "start", "end", "features"}
    assert arrays["features"].dtype == np.float32
    assert arrays["features"].shape == (4, 3)
    assert arrays["features"].argmax(1).tolist() == [0, 0, 2, 2]
    assert (arrays["start"].tolist(), arrays["end"].tolist()) == ([0, 1, 2, 3], [1, 2, 3, 4])
    assert set(arrays["path"]) == {name}


def test_a_video_shorter_than_a_clip_is_said(predict, capsys) -> None:
    for name, frames in (("a.mp4", 2), ("b.mp4", 3), ("long.mp4", 8)):
        write_video(Path(name), num_frames=frames)
    assert predict("long.mp4") == 0
    assert "repeated" not in capsys.readouterr().out
    assert predict("a.mp4", "long.mp4", "b.mp4") == 0
    message = f"note: a.mp4 has 2 frames, fewer than the {SPEC.span} that a clip spans, so they are repeated"
    assert f"{message}; the same holds for 1 more" in capsys.readouterr().out.replace("\n", " ")


def test_a_window_is_predicted_as_a_file_of_its_frames(predict, tmp_path) -> None:
    frames = [picture(index) for index in range(30)]
    for spec in (SPEC, ClipSpec(4, "dense", 2, num_clips=2, num_crops=3, crop_size=16, resize=20)):
        windows = list(list_windows([index / 10 for index in range(30)], 3.0, 1.1, 0.4))
        for window, views in zip(windows, window_views(iter(frames), windows, spec), strict=True):
            cut = torch.from_numpy(np.stack(frames[window.first : window.stop]))
            assert torch.equal(views, make_views(len(cut), lambda indices, cut=cut: cut[indices], spec))


def test_windows_cover_the_video() -> None:
    times = [index / 10 for index in range(45)]

    def found(length: float, stride: float) -> list[tuple[float, float, int, int]]:
        return [(round(w.start, 6), w.end, w.first, w.stop) for w in list_windows(times, 4.5, length, stride)]

    assert found(2, 2) == [(0, 2, 0, 20), (2, 4, 20, 40), (2.5, 4.5, 25, 45)]
    assert found(1.5, 1.5) == [(0, 1.5, 0, 15), (1.5, 3, 15, 30), (3, 4.5, 30, 45)]
    assert found(0.5, 3) == [(0, 0.5, 0, 5), (3, 3.5, 30, 35)]
    assert found(9, 1) == [(0, 4.5, 0, 45)]
    pause = list(list_windows([0, 0.1, 5.0], 5.1, 1, 1))  # the picture stands still for five seconds
    assert [(w.first, w.stop) for w in pause] == [(0, 2), (1, 2), (1, 2), (1, 2), (1, 2), (2, 3)]


@pytest.mark.parametrize("windows", [0, 1, 2, 7])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 20])
def test_smooth_is_the_mean_of_the_neighbours(windows, count) -> None:
    values = torch.rand(windows, 3)
    expected = [values[max(0, i - (count - 1) // 2) : i + count // 2 + 1].mean(dim=0) for i in range(windows)]
    found = list(smooth(values, count))
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("frames", [100, 1000])
def test_memory_does_not_grow_with_the_video(frames, monkeypatch) -> None:
    crops: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    images: list[weakref.ref[np.ndarray]] = []
    most = [0, 0]
    make = predict_windows.crops_of

    def counted(image: np.ndarray, spec: ClipSpec) -> torch.Tensor:
        crops.add(made := make(image, spec))
        most[0] = max(most[0], len(crops))
        return made

    def decode() -> Any:
        for _ in range(frames):
            images.append(weakref.ref(image := np.zeros((16, 16, 3), np.uint8)))
            most[1] = max(most[1], sum(ref() is not None for ref in images[-50:]))
            yield image

    monkeypatch.setattr(predict_windows, "crops_of", counted)
    windows = list(list_windows([index / 10 for index in range(frames)], frames / 10, 2, 0.5))
    assert sum(1 for _ in window_views(decode(), windows, SPEC)) == len(windows)
    assert most[0] <= 4 * 4 + 1, "four windows are open at once, with four frames each"
    assert most[1] <= 2


def test_video_with_captions(predict, capsys) -> None:
    video = write_colours(Path("in.mp4"), ["red", "green"], size=(97, 121))
    args = (video, "--windows", 1, "--stride", 0.5, "--smooth", 3, "--video", "out.mp4", "--rows", 2)
    assert predict(*args, "--top", 1) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "5 more rows; --rows 7 prints all" in printed
    assert "Written: out.mp4" in printed
    before, after = decode_all(video), decode_all("out.mp4")
    assert after.shape == (len(before), 98, 122, 3)
    corner = np.abs(after[:, 4:16, 4:60].astype(int) - before[:, 4:16, 4:60]).mean(axis=(1, 2, 3))
    rest = np.abs(after[:, 40:97, :121].astype(int) - before[:, 40:]).mean(axis=(1, 2, 3))
    assert corner.min() > 20 > 6 > rest.max()
    with av.open("out.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, float(stream.duration * stream.time_base)) == (
            "h264",
            pytest.approx(4, 0.01),
        )
    content = Path("out.mp4").read_bytes()
    assert predict(*args) == 1
    assert "out.mp4 exists; give another name, or --force" in capsys.readouterr().err
    assert Path("out.mp4").read_bytes() == content
    assert predict(*args, "--force") == 0


def test_a_video_that_is_not_finished_leaves_nothing(predict, monkeypatch) -> None:
    video = write_colours(Path("in.mp4"), ["red"])

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(predict_windows, "draw_caption", stop)
    assert predict(video, "--windows", 1, "--video", "out.mp4") == 130
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["in.mp4", "net"]


def test_damage_in_the_middle_keeps_the_windows_before_it(predict, capsys) -> None:
    video = write_video(Path("bad.mp4"), num_frames=60, fps=10, gop=10)
    data = bytearray(video.read_bytes())
    with av.open(str(video)) as container:
        positions = [packet.pos for packet in container.demux(video=0) if packet.size]
    data[positions[35] : positions[50]] = bytes(positions[50] - positions[35])
    video.write_bytes(data)
    assert predict(video, "--windows", 1, "--csv", "a.csv", "--video", "out.mp4") == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "error: bad.mp4: " in printed
    assert "3 of 6 windows, those before the damage, are predicted; --video is not written" in printed
    rows = rows_of("a.csv")
    assert [(row["start"], bool(row["error"])) for row in rows] == [
        *((s, False) for s in ("0.0", "1.0", "2.0")),
        ("", True),
    ]
    assert not Path("out.mp4").exists()


def test_paths_on_standard_input_and_features_of_files(predict, capsys, monkeypatch) -> None:
    names = [str(write_colours(Path(f"a {name}.mp4"), [name], 1)) for name in COLOURS]
    Path("text.mp4").write_text("no video")
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join([*names, "text.mp4"]) + "\r\n\n"))
    assert predict("-", "--features", "x.npy", "--csv", "a.csv", "--rows", 1) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 more rows in a.csv" in printed
    assert "error: text.mp4: not a readable video" in printed
    assert "Written: x.npy, 3 rows with the input of the layer 2" in printed
    assert [(row["path"], row["top1"]) for row in rows_of("a.csv")[:3]] == list(zip(names, COLOURS, strict=True))
    features = np.load("x.npy")
    assert (features.dtype, features.argmax(1).tolist()) == (np.float32, [0, 1, 2])
    assert [row["path"] for row in rows_of("x.csv")] == names
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert predict("-") == 1
    assert "reads paths from standard input, one a line, and there are none" in capsys.readouterr().err


def test_features_in_parquet(predict, capsys, monkeypatch) -> None:
    video = write_colours(Path("a.mp4"), ["red", "blue"])
    assert predict(video, "--windows", 2, "--features", "x.parquet") == 0
    assert predict(video, "--features", "whole.parquet") == 0
    windows, whole = pd.read_parquet("x.parquet"), pd.read_parquet("whole.parquet")
    assert list(windows) == list(whole) == ["path", "start", "end", "features"]
    assert windows[["path", "start", "end"]].values.tolist() == [["a.mp4", 0.0, 2.0], ["a.mp4", 2.0, 4.0]]
    assert [(row.dtype, row.argmax()) for row in windows["features"]] == [(np.float32, 0), (np.float32, 2)]
    assert whole["start"].isna().all()
    Path("text.mp4").write_text("no video")
    assert predict("text.mp4", "--features", "none.parquet") == 1
    assert len(pd.read_parquet("none.parquet")) == 0
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert predict(video, "--features", "y.parquet") == 1
    assert "a .parquet file needs pyarrow: pip install pyarrow" in capsys.readouterr().err
    assert not Path("y.parquet").exists()


def test_a_window_longer_than_the_video_is_one_window(predict, capsys) -> None:
    video = write_colours(Path("in.mp4"), ["blue"])
    assert predict(video, "--windows", 60, "--csv", "a.csv") == 0
    assert "note: in.mp4 lasts 2.00 s, less than a window of 60 s; it is one window" in capsys.readouterr().out
    assert [(row["start"], row["end"], row["top1"]) for row in rows_of("a.csv")] == [("0.0", "2.0", "blue")]
    assert predict(video, "--windows", 0.2) == 0
    assert "a window has 2 frames, fewer than the 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--stride", "1"], "--stride is for windows; add --windows SECONDS"),
        (["--video", "x.mp4"], "--video is for windows; add --windows SECONDS"),
        (["--windows", "1", "--stride", "0"], "--stride is 0; it must be at least 0.001 seconds"),
        (["--windows", "-1"], "--windows is -1; it must be at least 0.001 seconds"),
        (["--windows", "nan"], "--windows is nan"),
        (["--windows", "1", "--smooth", "0"], "--smooth is 0; it must be at least 1"),
        (["--windows", "1", "--video", "x.avi"], "--video is x.avi; the name must end in .mp4"),
        (["--windows", "1", "--video", "none/x.mp4"], "--video is none/x.mp4, but there is no folder none"),
        (["--windows", "1", "--video", "in.mp4", "--force"], "--video is in.mp4, which is also an input"),
        (["in.mp4", "--windows", "1", "--video", "x.mp4"], "--video is drawn on one video, and the paths are 2"),
        (["--features", "x.txt"], "--features is x.txt; the name must end in .npz or .npy or .parquet"),
        (["--csv", "net"], "--csv is net, which is a folder"),
        (["--csv", "a", "--json", "./a"], "--csv and --json both write a"),
        (["--csv", "in.mp4", "--force"], "--csv is in.mp4, which is also an input"),
        (["--csv", "x.csv", "--features", "x.npy"], "both write x.csv"),
    ],
)
def test_wrong_options_are_said_before_anything_is_predicted(predict, capsys, args, message) -> None:
    write_colours(Path("in.mp4"), ["red"], 1)
    assert predict("in.mp4", *args) == 1
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["in.mp4", "net"]


@pytest.mark.parametrize(
    ("limit", "files", "full"),
    [
        (5_000, {"--csv": "a.csv", "--json": "a.json"}, "a.csv"),
        (20_000, {"--csv": "a.csv", "--json": "a.json"}, "a.json"),
        (2_000, {"--features": "a.npy"}, "a.npy"),
        (2_500, {"--features": "a.npy"}, "a.csv"),
    ],
)
def test_a_full_disk_leaves_no_file(predict, capsys, limit, files, full) -> None:
    """The same command, without --force, works when there is space."""
    write_colours(Path("in.mp4"), ["red", "blue"], 2)
    command = ["in.mp4", "--windows", 0.2, "--stride", 0.02, *(word for pair in files.items() for word in pair)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        assert predict(*command) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"free some space, or write elsewhere: '{full}'" in capsys.readouterr().err
    assert {path.name for path in Path().iterdir()} == {"in.mp4", "net"}
    assert predict(*command, "--rows", 1) == 0
    assert {path.name for path in Path().iterdir()} >= {"in.mp4", "net", *files.values()}
