import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.training.checkpoints import CheckpointError
from common.training.library_network import LibraryNetworkModule, build_library_network
from common.training.task import NonFiniteError, load_module, load_pretrained
from tests.common.training.synthetic import SyntheticClips
from tests.common.training.tiny import TinyModule

TESTS = ("tests",)


def trainer(folder, **options) -> L.Trainer:
    defaults = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    defaults |= {"enable_checkpointing": False, "enable_model_summary": False, "use_distributed_sampler": False}
    return L.Trainer(default_root_dir=folder, **{**defaults, **options})


def trained(folder, **options) -> tuple[TinyModule, L.Trainer]:
    L.seed_everything(0)
    module = TinyModule(**options)
    runner = trainer(folder)
    runner.fit(module, datamodule=SyntheticClips(classes=module.num_classes))
    return module, runner


def test_every_parameter_gets_a_gradient_and_every_class_is_scored(tmp_path):
    module, runner = trained(tmp_path)
    assert module.result is not None
    assert module.result.videos == 7
    assert {"train_loss", "train_top1", "val_top1", "val_top5", "val_mean_class", "val_loss"} <= set(
        runner.callback_metrics
    )
    L.seed_everything(0)
    assert all(
        not torch.equal(new, old) for new, old in zip(module.parameters(), TinyModule().parameters(), strict=True)
    )


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_views_per_forward_does_not_change_the_scores(tmp_path, average):
    results = []
    for views_per_forward in (1, 3, 100):
        L.seed_everything(0)
        module = TinyModule(views_per_forward=views_per_forward, average=average)
        trainer(tmp_path).test(module, datamodule=SyntheticClips(views=3), verbose=False)
        results.append(module.result)
        assert module.views_per_video == 3
        assert sorted(module.paths) == list(range(7))
    for result in results[1:]:
        torch.testing.assert_close(result.probabilities, results[0].probabilities, rtol=1e-5, atol=1e-6)
    with torch.inference_mode():
        batches = SyntheticClips(views=3).test_dataloader()
        right = torch.cat([module(batch["video"]).argmax(1) == batch["label"] for batch in batches])
    assert results[0].view_top1 == pytest.approx(right.double().mean().item())


def test_accumulated_batches_equal_one_big_batch(tmp_path):
    weights = []
    for batch_size, accumulate in ((12, 1), (4, 3)):
        L.seed_everything(0)
        module = TinyModule()
        runner = trainer(tmp_path, max_epochs=3, accumulate_grad_batches=accumulate)
        runner.fit(module, datamodule=SyntheticClips(batch_size=batch_size))
        assert runner.global_step == 3
        weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    torch.testing.assert_close(*weights)


def test_bf16_mixed_trains_and_scores_in_float32(tmp_path):
    L.seed_everything(0)
    module = TinyModule()
    trainer(tmp_path, precision="bf16-mixed").fit(module, datamodule=SyntheticClips())
    assert module.result is not None
    assert all(p.dtype == torch.float32 for p in module.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_the_videos(tmp_path, value):
    class Broken(SyntheticClips):
        def train_dataloader(self):
            loader = super().train_dataloader()
            loader.dataset.video[5] = value
            return loader

    with pytest.raises(NonFiniteError, match=r"in epoch 0, step 1, batch 1 \(videos: clip4.mp4, clip5.mp4, clip6"):
        trainer(tmp_path).fit(TinyModule(), datamodule=Broken())


def test_an_output_that_is_not_finite_names_the_video(tmp_path):
    class Broken(SyntheticClips):
        def test_dataloader(self):
            loader = super().test_dataloader()
            loader.dataset.video[6, 1] = float("nan")
            return loader

    with pytest.raises(NonFiniteError, match=r"output is NaN or infinite \(videos: clip6.mp4\)"):
        trainer(tmp_path).test(TinyModule(), datamodule=Broken(), verbose=False)


@pytest.mark.parametrize(("smoothing", "weights"), [(0.2, None), (0.0, [1.0, 2.0, 0.5]), (0.2, [1.0, 2.0, 0.5])])
def test_label_smoothing_and_class_weights(tmp_path, smoothing, weights):
    L.seed_everything(0)
    plain = TinyModule()
    L.seed_everything(0)
    module = TinyModule(label_smoothing=smoothing, class_weights=weights)
    assert list(module.state_dict()) == list(plain.state_dict())
    batch = next(iter(SyntheticClips().train_dataloader()))
    label = batch["label"]
    weight = None if weights is None else torch.tensor(weights)
    with torch.inference_mode():
        expected = F.cross_entropy(module(batch["video"]), label, weight, label_smoothing=smoothing)
    runner = trainer(tmp_path, limit_train_batches=1, limit_val_batches=0)
    runner.fit(module, datamodule=SyntheticClips())
    torch.testing.assert_close(runner.callback_metrics["train_loss"], expected)

    plain.load_state_dict(module.state_dict())
    for tested in (plain, module):
        trainer(tmp_path).test(tested, datamodule=SyntheticClips(), verbose=False)
    scores = plain.result.probabilities.log()
    weight = None if weight is None else weight.double()
    expected = F.cross_entropy(scores, plain.result.label, weight, label_smoothing=smoothing)
    assert module.result.loss == pytest.approx(expected.item())
    assert module.result.metrics() == {**plain.result.metrics(), "loss": module.result.loss}

    runner.save_checkpoint(tmp_path / "x.ckpt")
    assert load_module(tmp_path / "x.ckpt", TESTS).hparams["class_weights"] == weights


def test_a_checkpoint_from_before_label_smoothing_loads_and_resumes(tmp_path):
    module, runner = trained(tmp_path)
    path = tmp_path / "x.ckpt"
    runner.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    for name in ("label_smoothing", "class_weights"):
        del content["hyper_parameters"][name]
    torch.save(content, path)
    assert load_module(path, TESTS).hparams["label_smoothing"] == 0
    trainer(tmp_path, max_epochs=2).fit(module, datamodule=SyntheticClips(), ckpt_path=path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing is 1\.0: give a number from 0 to below 1"),
        ({"label_smoothing": -0.1}, r"label_smoothing is -0\.1"),
        ({"label_smoothing": float("nan")}, "label_smoothing is nan"),
        ({"class_weights": [1.0, 2.0]}, "class_weights has 2 values: give one positive, finite weight .* 3 classes"),
        ({"class_weights": []}, "class_weights has 0 values"),
        ({"class_weights": [1.0, 0.0, 1.0]}, r"class_weights has the value 0\.0"),
        ({"class_weights": [1.0, -1.0, 1.0]}, r"class_weights has the value -1\.0"),
        ({"class_weights": [1.0, 1.0, float("inf")]}, "class_weights has the value inf"),
        ({"class_weights": [1e39, 1.0, 1.0]}, r"class_weights has the value 1e\+39: .* 3 classes"),
    ],
)
def test_wrong_label_smoothing_and_class_weights(options, message):
    with pytest.raises(ValueError, match=message):
        TinyModule(**options)


def test_data_with_other_classes_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="num_classes is 4 in the data and 3 in the network; leave"):
        trainer(tmp_path).fit(TinyModule(), datamodule=SyntheticClips(classes=4))


def test_a_checkpoint_alone_is_enough(tmp_path):
    module, runner = trained(tmp_path, width=6)
    path = tmp_path / "x.ckpt"
    runner.save_checkpoint(path)
    torch.load(path, weights_only=True)
    loaded = load_module(path, TESTS)
    assert isinstance(loaded, TinyModule)
    assert not loaded.training
    assert (loaded.output_names, loaded.spec) == (["class 0", "class 1", "class 2"], SyntheticClips().spec.to_dict())
    video = torch.randn(2, 3, 4, 8, 8)
    assert torch.equal(loaded(video), module.eval()(video))
    views = loaded.predict_views(video)
    torch.testing.assert_close(views, loaded(video).softmax(1).mean(0))


def test_only_our_modules_are_rebuilt(tmp_path):
    _, runner = trained(tmp_path)
    path = tmp_path / "x.ckpt"
    runner.save_checkpoint(path)
    with pytest.raises(CheckpointError, match="lies outside of papers, common"):
        load_module(path)
    content = torch.load(path, weights_only=True)
    for class_path, message in (
        ("tests.common.training.synthetic.SyntheticClips", "is not a module of this project"),
        ("tests.common.training.tiny.Gone", "does not exist here"),
        ("tests.common.gone.TinyModule", "does not exist here"),
    ):
        content["spectral"]["class_path"] = class_path
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=message):
            load_module(path, TESTS)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint written by this project"):
        load_module(path, TESTS)


def test_a_checkpoint_of_another_network_names_the_keys(tmp_path):
    _, runner = trained(tmp_path, width=6)
    path = tmp_path / "x.ckpt"
    runner.save_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"of another shape: network.0.0.weight \(6, 3, 3, 3, 3\) instead of \(4"):
        trainer(tmp_path).test(
            TinyModule(), datamodule=SyntheticClips(), ckpt_path=path, verbose=False, weights_only=True
        )
    other = LibraryNetworkModule(3, network="torchvision.models.video.mc3_18")
    with pytest.raises(CheckpointError, match=r"(?s)missing in the checkpoint: network\.stem.*unexpected in the check"):
        trainer(tmp_path).test(other, datamodule=SyntheticClips(), ckpt_path=path, verbose=False, weights_only=True)


def test_a_checkpoint_with_other_class_names_is_an_error(tmp_path):
    _, runner = trained(tmp_path)
    path = tmp_path / "x.ckpt"
    runner.save_checkpoint(path)
    data = SyntheticClips()
    data.output_names = ["class 0", "class 2", "class 1"]
    with pytest.raises(CheckpointError, match="class 1 is 'class 1' in the checkpoint and 'class 2' in the data"):
        trainer(tmp_path).test(TinyModule(), datamodule=data, ckpt_path=path, verbose=False, weights_only=True)


def test_weights_to_start_from_are_loaded_once_when_a_fit_begins_and_not_by_one_that_resumes(tmp_path):
    module, runner = trained(tmp_path)
    path = tmp_path / "x.ckpt"
    runner.save_checkpoint(path)
    fresh = TinyModule(pretrained=str(path), lr=0.0)
    assert not torch.equal(fresh.network[1].weight, module.network[1].weight)  # nothing is read in the constructor
    trainer(tmp_path).fit(fresh, datamodule=SyntheticClips())
    assert torch.equal(fresh.network[1].weight, module.network[1].weight)
    gone = TinyModule(pretrained="gone.ckpt")
    with pytest.raises(CheckpointError, match=r"gone\.ckpt"):
        trainer(tmp_path).fit(gone, datamodule=SyntheticClips())
    resumed = TinyModule(pretrained="gone.ckpt")
    trainer(tmp_path, max_epochs=9).fit(resumed, datamodule=SyntheticClips(), ckpt_path=path, weights_only=True)
    trainer(tmp_path).test(TinyModule(imagenet="gone.pth"), datamodule=SyntheticClips(), verbose=False)


def test_pretrained_swaps_the_classifier_and_says_so(tmp_path):
    module, runner = trained(tmp_path)
    path = tmp_path / "x.ckpt"
    runner.save_checkpoint(path)
    network = TinyModule(num_classes=5).network
    before = network[1].weight.clone()
    message = load_pretrained(network, path)
    assert "loaded 3 tensors; 3 outputs there, 5 here, so not loaded: 1.weight, 1.bias" in message
    assert torch.equal(network[0][0].weight, module.network[0][0].weight)
    assert torch.equal(network[1].weight, before)
    assert "loaded all 5 tensors" in load_pretrained(TinyModule().network, path)
    with pytest.raises(CheckpointError, match="weights of another network"):
        load_pretrained(TinyModule(width=6).network, path)
    torch.save(module.network.state_dict(), path)  # a plain state dict will do
    assert "loaded all 5 tensors" in load_pretrained(TinyModule().network, path)
    torch.save({f"module.{key}": value for key, value in module.network.state_dict().items()}, path)
    assert "loaded all 5 tensors" in load_pretrained(TinyModule().network, path)


@pytest.mark.slow
def test_compile_keeps_the_keys_and_the_output():
    L.seed_everything(0)
    plain = TinyModule().eval()
    compiled = TinyModule(compile=True).eval()
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    compiled.load_state_dict(plain.state_dict())
    video = torch.randn(2, 3, 4, 8, 8)
    torch.testing.assert_close(compiled(video), plain(video))


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("torchvision.models.video.r2plus1d_18", {}, 32),
        ("papers.dtf.dtf_net", {"depth": 18, "width": 0.125, "stem_stride": 1, "block": "dtf-1d"}, 32),
        ("papers.srl.srl_c2d", {"depth": 18, "width": 0.125}, 32),
        ("papers.stft3d.stft_c2d", {"width": 0.125}, 32),
        ("pytorchvideo.models.csn.create_csn", {"head_pool_kernel_size": [1, 1, 1]}, 32),
        ("pytorchvideo.models.slowfast.create_slowfast", {"head_pool_kernel_sizes": [[1, 1, 1], [4, 1, 1]]}, 32),
    ],
)
def test_library_networks_run_in_the_harness(name, options, size):
    module = LibraryNetworkModule(5, name, options, num_frames=4, input_size=size).eval()
    with torch.inference_mode():
        assert module(torch.randn(1, 3, 4, size, size)).shape == (1, 5)


def test_library_networks_are_those_of_a_few_packages():
    with pytest.raises(ValueError, match="not below torchvision"):
        build_library_network("os.system", 5)
    for name in ("papers.fdc3d.FDC3DModule", "papers.dtf.networks.dtf_blocks", "papers.fdc3d.load_compact"):
        with pytest.raises(ValueError, match=r"is no function of a paper's networks\.py with num_classes"):
            build_library_network(name, 5)
    with pytest.raises(ValueError, match="does not exist"):
        build_library_network("torchvision.models.video.r4d_18", 5)
    with pytest.raises(ValueError, match="takes no 'depth'; it takes"):
        build_library_network("pytorchvideo.models.csn.create_csn", 5, depth=3)
    slowfast = build_library_network("pytorchvideo.models.slowfast.create_slowfast", 5)
    with pytest.raises(ValueError, match="SlowFast takes a multiple of 4 frames, got 6"):
        slowfast(torch.randn(1, 3, 6, 32, 32))


def test_a_module_without_a_network_says_what_to_implement():
    from common.training.classification import VideoClassificationModule

    with pytest.raises(NotImplementedError, match="VideoClassificationModule must implement build_network"):
        VideoClassificationModule(3)
    assert isinstance(TinyModule().network, nn.Module)
