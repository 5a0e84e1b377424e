"""FID, KID and LPIPS are those of torch-fidelity's command and of their definitions."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

from eotjax.data import images
from eotjax.errors import UserError
from eotjax.evaluation import fidelity, judge

torch_fidelity = pytest.importorskip(
    "torch_fidelity", reason="the extra fid is not installed"
)
import torch  # noqa: E402
import torchvision  # noqa: E402
from torch_fidelity import (  # noqa: E402
    feature_extractor_inceptionv3,
    sample_similarity_lpips,
)

pytestmark = pytest.mark.usefixtures("one_torch_thread")
CHANNELS = (64, 128, 256, 512, 512)  # of the layers of VGG-16 that LPIPS compares


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """A download fails the test, and GPUs, which round otherwise, are not used."""

    def refuse(url, *_, **__):
        raise AssertionError(f"downloads {url}")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def pictures(count, channels=3, seed=0, size=32):
    """Random images of 4x4 coloured squares."""
    rng = np.random.default_rng(seed)
    squares = rng.integers(0, 256, (count, 4, 4, channels), dtype=np.uint8)
    return squares.repeat(size // 4, 1).repeat(size // 4, 2)


def randomise(network):
    """Convolutions that keep the scale of what passes them (He et al. 2015)."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """A file of random weights that make three of the 2048 features other than zero.

    Three: of four images or more the covariances have full rank, so that FID is well
    conditioned, and their eigenvalues take no time.
    """

    class Untrained(torch_fidelity.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_):
            pass

    path = tmp_path_factory.mktemp("inception") / "any_name.pth"
    torch.save({}, path)
    network = Untrained("inception-v3-compat", ["2048"], str(path))
    randomise(network)
    last = network.Mixed_7c
    for name in ("1x1", "3x3_2a", "3x3_2b", "3x3dbl_3a", "3x3dbl_3b", "_pool"):
        getattr(last, f"branch{name}").bn.weight[:] = 0
    for name in ("3x3_2a", "3x3dbl_3a", "_pool"):
        getattr(last, f"branch{name}").bn.weight[0] = 100
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def lpips_files(tmp_path_factory):
    """A file of random weights, VGG-16 beside it; (path, VGG-16, layers' weights)."""
    folder = tmp_path_factory.mktemp("lpips")
    rng = np.random.default_rng(1)
    layers = [rng.uniform(size=c).astype("f4") for c in CHANNELS]
    state = {
        f"lin{i}.model.1.weight": torch.tensor(w).reshape(1, -1, 1, 1)
        for i, w in enumerate(layers)
    }
    torch.save(state, folder / "any_name.pth")
    with torch.device("meta"):
        vgg16 = torchvision.models.vgg16(init_weights=False)
    vgg16.features.to_empty(device="cpu")
    randomise(vgg16.features)
    state = {
        # What LPIPS does not use is one number, expanded: 0.5 GB less on disk.
        k: v if k.startswith("features") else torch.zeros(1).expand(v.shape)
        for k, v in vgg16.state_dict().items()
    }
    torch.save(state, folder / fidelity.VGG16_WEIGHTS)
    return folder / "any_name.pth", vgg16.features[:30], layers


def test_the_names_of_the_weights_are_the_published_ones():
    for name, url in {
        fidelity.INCEPTION_WEIGHTS: feature_extractor_inceptionv3.URL_INCEPTION_V3,
        fidelity.LPIPS_WEIGHTS: sample_similarity_lpips.URL_VGG16_LPIPS,
        fidelity.VGG16_WEIGHTS: torchvision.models.VGG16_Weights.IMAGENET1K_V1.url,
    }.items():
        assert Path(url).name == name


@pytest.mark.parametrize("channels", [1, 3])
def test_fid_and_kid_are_those_of_the_command_on_png_files(
    channels, inception, tmp_path
):
    sets = pictures(5, channels, seed=1), pictures(4, channels, seed=2)
    folders = tmp_path / "translated", tmp_path / "target"
    for folder, pixels in zip(folders, sets, strict=True):
        folder.mkdir()
        for index, image in enumerate(pixels):
            images.write(folder / f"{index}.png", image)
    options = ["--fid", "--kid", "--kid-subset-size", "4"]
    options += ["--cpu", "--json", "--silent"]
    options += ["--feature-extractor-weights-path", str(inception)]
    options += ["--input1", str(folders[0]), "--input2", str(folders[1])]
    command = [sys.executable, "-m", "torch_fidelity.fidelity", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    )
    expected = json.loads(run.stdout)

    found = fidelity.distribution(*sets, inception)
    pairs = {"fid": "frechet_inception_distance"}
    pairs |= {"kid": "kernel_inception_distance_mean"}
    pairs |= {"kid_std": "kernel_inception_distance_std"}
    assert found == pytest.approx({k: expected[v] for k, v in pairs.items()}, rel=1e-6)
    assert found["fid"] > 0
    assert found["kid_std"] > 0  # subsets of 4 of the 5


def test_fid_and_kid_of_grey_images_are_the_closed_forms_on_the_features(inception):
    sets = pictures(4, 1, seed=1), pictures(4, 1, seed=2)
    found = fidelity.distribution(*sets, inception)

    network = torch_fidelity.FeatureExtractorInceptionV3("", ["2048"], str(inception))
    rgb = np.concatenate(sets).repeat(3, -1).transpose(0, 3, 1, 2)
    x, y = network(torch.tensor(rgb))[0].double().numpy().reshape(2, 4, -1)
    # tr (A B)^(1/2) of covariances A = X'X and B = Y'Y is the nuclear norm of X Y'.
    a, b = ((f - f.mean(0)) / np.sqrt(len(f) - 1) for f in (x, y))
    cross = scipy.linalg.svdvals(a @ b.T).sum()
    fid = np.sum((x.mean(0) - y.mean(0)) ** 2) + (a**2).sum() + (b**2).sum() - 2 * cross
    assert found["fid"] == pytest.approx(fid, rel=1e-5)

    def kernel(u, v):  # Binkowski et al. 2018, section 4
        return (u @ v.T / u.shape[1] + 1) ** 3

    other = ~np.eye(4, dtype=bool)
    within = kernel(x, x)[other].mean() + kernel(y, y)[other].mean()
    kid = within - 2 * kernel(x, y).mean()
    assert found["kid"] == pytest.approx(kid, rel=1e-4)
    assert found["kid_std"] == pytest.approx(0, abs=1e-5)  # one subset: all of them


def test_images_have_no_distance_to_themselves(inception):
    """Read-only, as JAX's arrays are. KID, unbiased, is below zero."""
    x = pictures(2)
    x.flags.writeable = False
    found = fidelity.distribution(x, x, inception)
    assert found["fid"] == pytest.approx(0, abs=1e-6)
    assert found["kid"] <= 0


def test_lpips_is_its_definition_on_the_features_of_vgg16(lpips_files):
    """Zhang et al. 2018, equation 1; also of odd sizes and more pairs than a batch."""
    path, vgg16, layers = lpips_files
    n = fidelity.PAIRS_AT_ONCE + 2
    x, y = (pictures(n, seed=seed)[:, :29, :27] for seed in (1, 2))
    found = fidelity.lpips(x, y, path)
    assert found.dtype == np.float32

    def activations(rgb):
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's
        h = torch.tensor((rgb / 255 - mean) / std).float().permute(0, 3, 1, 2)
        for index, module in enumerate(vgg16):
            h = module(h)
            if index in (3, 8, 15, 22, 29):  # conv1_2, 2_2, 3_3, 4_3, 5_3, rectified
                yield (h / h.norm(dim=1, keepdim=True)).numpy()

    with torch.no_grad():
        expected = sum(
            np.einsum("nchw,c->nhw", (a - b) ** 2, weight).mean((1, 2))
            for a, b, weight in zip(activations(x), activations(y), layers, strict=True)
        )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_lpips_is_symmetric_and_zero_only_between_equals(lpips_files):
    path, *_ = lpips_files
    x, y = pictures(3, 1, seed=1, size=16), pictures(3, 1, seed=2, size=16)
    y[0] = x[0]
    before = torch.hub.get_dir()
    found = fidelity.lpips(x, y, path)
    assert torch.hub.get_dir() == before
    assert found[0] == 0
    assert (found[1:] > 0).all()
    np.testing.assert_allclose(found, fidelity.lpips(y, x, path), rtol=1e-6)


def measures(weights):
    x = pictures(2)
    return {
        fidelity.INCEPTION_WEIGHTS: lambda: fidelity.distribution(x, x, weights),
        fidelity.LPIPS_WEIGHTS: lambda: fidelity.lpips(x, x, weights),
    }


@pytest.mark.parametrize("name", [fidelity.INCEPTION_WEIGHTS, fidelity.LPIPS_WEIGHTS])
def test_weights_that_are_missing_are_named(name, tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(UserError, match=f"no file of weights {path}; .* {name} there"):
        measures(path)[name]()


def test_what_is_missing_is_told_before_anything_is_translated(tmp_path):
    path = tmp_path / "weights.pth"
    for name in ("inception", "lpips"):
        with pytest.raises(UserError, match=r"no file of weights .*weights\.pth"):
            judge.Weights(**{name: str(path)}).check((32, 32, 3))
    path.touch()
    judge.Weights(inception=str(path)).check((32, 32, 3))
    with pytest.raises(UserError, match=fidelity.VGG16_WEIGHTS):
        judge.Weights(lpips=str(path)).check((32, 32, 3))
    with pytest.raises(UserError, match="16x16 pixels or more"):
        judge.Weights(lpips=str(path)).check((8, 32, 3))


def test_vgg16_that_does_not_lie_beside_the_weights_of_lpips_is_named(tmp_path):
    (tmp_path / "weights.pth").touch()
    expected = tmp_path / fidelity.VGG16_WEIGHTS
    with pytest.raises(UserError, match=f"no file of weights {expected}; "):
        measures(tmp_path / "weights.pth")[fidelity.LPIPS_WEIGHTS]()


@pytest.mark.parametrize("name", [fidelity.INCEPTION_WEIGHTS, fidelity.LPIPS_WEIGHTS])
@pytest.mark.parametrize("content", ["text", "nothing", "a list", "another network"])
def test_weights_that_are_others_are_named(name, content, tmp_path):
    path = tmp_path / "weights.pth"
    if content in ("text", "nothing"):
        path.write_text("hello\n" * (content == "text"))
    else:
        torch.save([1] if content == "a list" else {"w": torch.zeros(1)}, path)
    torch.save({}, tmp_path / fidelity.VGG16_WEIGHTS)
    with pytest.raises(UserError, match=rf"cannot load .* {path}.* published {name}"):
        measures(path)[name]()


def test_a_vgg16_that_is_another_network_is_named(lpips_files, tmp_path):
    path, *_ = lpips_files
    copy = shutil.copy(path, tmp_path)
    torch.save({"w": torch.zeros(1)}, tmp_path / fidelity.VGG16_WEIGHTS)
    with pytest.raises(UserError, match=f"cannot load .* {fidelity.VGG16_WEIGHTS}"):
        measures(copy)[fidelity.LPIPS_WEIGHTS]()


@pytest.mark.parametrize("name", [fidelity.INCEPTION_WEIGHTS, fidelity.LPIPS_WEIGHTS])
def test_without_torch_fidelity_the_extra_to_install_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    remedy = r"need torch-fidelity \(.*\); launch/install\.sh fid brings it\."
    with pytest.raises(UserError, match=remedy):
        measures("weights.pth")[name]()


def test_nothing_imports_torch_before_it_is_needed():
    code = "import sys, eotjax.evaluation.fidelity; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_image_has_no_distribution():
    with pytest.raises(UserError, match=r"two images or more .* there are 3 and 1;"):
        fidelity.distribution(pictures(3), pictures(1), "weights.pth")


def test_images_too_small_for_vgg16_are_refused():
    x = pictures(1, size=16)[:, :15]
    with pytest.raises(UserError, match="16x16 pixels or more, but these have 15x16;"):
        fidelity.lpips(x, x, "weights.pth")
