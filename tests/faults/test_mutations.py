"""Whatever a file or an option has become, the answer is a sentence.

`./launch/test.sh --faults` tries each kind as often as WHOLE says and prints what came
of it and how far memory rose.
"""

import io
import resource
import shutil
import sys
import zipfile
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from flax.traverse_util import flatten_dict
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from ml_collections import config_flags
from PIL import Image

import eotjax
from eotjax import errors, main, parallel, prepare, train
from eotjax.build import checks, dataset, learning, planning
from eotjax.data import domains, images, sources

NAMES = domains.Four("trainA", "trainB", "testA", "testB")
WHOLE = {"images": 5000, "npz": 1000, "options": 1000, "exports": 500}
PART = 50  # in a short run one in so many
MOST_GIB = 2.0  # that memory may rise


@pytest.fixture
def often(request):
    """Tries a test of examples often, and tells what came of them."""

    def run(kind, strategy, attempt):
        """`attempt` answers with a word, or raises UserError."""
        count = WHOLE[kind]
        if not request.config.getoption("--faults"):
            count = max(count // PART, 20)
        words: Counter[str] = Counter()
        if (peak := Path("/proc/self/clear_refs")).exists():  # Linux
            peak.write_text("5")  # the peak is that of now
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        @seed(0)
        @settings(
            max_examples=count,
            deadline=60_000,  # ms: none hangs
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def each(example):
            try:
                words[attempt(example)] += 1
            except (errors.UserError, SystemExit) as error:
                sentence = str(error)
                assert 10 < len(sentence) < 1500 and "Traceback" not in sentence
                words["refused"] += 1

        each()
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        rise = (after - before) / 2**20
        told = ", ".join(f"{n} {word}" for word, n in sorted(words.items()))
        print(f"{kind}: {told}; memory rose by {rise:.2f} GiB")
        assert rise < MOST_GIB

    return run


KINDS = ("flip", "set", "zero", "cut", "end", "twice")
DAMAGE = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.sampled_from([64, 64, 2**31]),  # headers are where it matters
        st.integers(0, 2**31),  # where, modulo the former and the length
        st.sampled_from([1, 1, 2, 4, 16, 256]),  # bytes
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=3,
)


def damaged(whole: bytes, damage) -> bytes:
    """Bytes with a few of them flipped, set, zeroed, cut out or doubled."""
    data = bytearray(whole)
    for kind, most, at, length, value in damage:
        at %= max(min(most, len(data)), 1)
        part = data[at : at + length]
        if kind == "flip" and part:
            data[at] ^= 1 << value % 8
        elif kind == "set" and part:
            data[at] = value
        elif kind == "zero":
            data[at : at + length] = bytes(len(part))
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "end":
            del data[at:]
        elif kind == "twice":
            data[at:at] = part
    return bytes(data)


def image_files() -> list[bytes]:
    """One image in each format, mode and way of compression that is read."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 4), dtype=np.uint8)
    rgba = Image.fromarray(pixels)
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    files = []
    for image, name, options in [
        (rgba.convert("RGB"), "JPEG", {}),
        (rgba.convert("CMYK"), "JPEG", {}),
        (rgba.convert("RGB"), "JPEG", {"progressive": True}),
        *((rgba.convert(mode), "PNG", {}) for mode in ("RGB", "RGBA", "P", "LA", "1")),
        (deep, "PNG", {}),
        (rgba.convert("RGB"), "WEBP", {}),
        (rgba, "WEBP", {"lossless": True}),
        (rgba.convert("P"), "GIF", {}),
        (rgba.convert("RGB"), "BMP", {}),
        *(
            (rgba.convert("RGB"), "TIFF", {"compression": way})
            for way in ("raw", "tiff_lzw", "tiff_deflate", "jpeg")
        ),
    ]:
        written = io.BytesIO()
        image.save(written, name, **options)
        files.append(written.getvalue())
    return files


def test_images(often):
    files = image_files()

    def attempt(example):
        number, damage = example
        file = damaged(files[number], damage)
        for fit in ("crop", "pad"):
            x = images.decode(io.BytesIO(file), size=(16, 16), channels=3, fit=fit)
            assert x.shape == (16, 16, 3) and x.dtype == np.uint8
        return "read"

    numbers = st.integers(0, len(files) - 1)
    often("images", st.tuples(numbers, DAMAGE), attempt)


def test_npz_files(often, tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(4, 3)).astype("f4")
    pixels = rng.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    path = tmp_path / "mutated.npz"

    def attempt(example):
        """Of the file, or of an array in it that the archive's sums then agree with."""
        array, compressed, within, damage = example
        way = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", way) as archive:
            for name in NAMES:
                member = io.BytesIO()
                np.save(member, array)
                content = member.getvalue()
                if within and name == "trainB":
                    content = damaged(content, damage)
                archive.writestr(f"{name}.npy", content)
        if not within:
            path.write_bytes(damaged(path.read_bytes(), damage))
        splits = sources.npz(str(path), NAMES)
        assert all(x.dtype in (np.float32, np.uint8) for x in splits if x.size)
        return "read"

    either = st.sampled_from([vectors, pixels])
    example = st.tuples(either, st.booleans(), st.booleans(), DAMAGE)
    often("npz", example, attempt)


WORDS = """
nan inf -inf 1e30 1e-30 -1e30 0 -0.0 999999999999 99999999999999999999999 True False
None () (1,) (0,) (-1,) (1,2) (3,3,3) (16,16) (8,8) [] {} '' x folder npz digits tfds
bridge cde cdiffe cmde both forward whole entropic independent pooled pca pixels
features data v noise images white mean std heun ddim ancestral dpmpp_2m bfloat16
float32 ve vp_linear vp_cosine /proc/self/mem /dev/null ../.. \x00 \u00e9
"""
VALUES = st.one_of(
    st.integers(-3, 40).map(str),
    st.floats(-2, 2).map(str),
    st.sampled_from(WORDS.split()),
    st.text(max_size=6),
)


@pytest.mark.filterwarnings("ignore:the load_module")  # ml_collections'
@pytest.mark.parametrize("config", ["npz.py:vectors,smoke", "digits.py:smoke"])
def test_options(often, vectors, monkeypatch, config):
    """As far as the compiler: parsed, checked, its data loaded, its step traced."""
    path = vectors().data.path
    file = f"--config=configs/{config}"
    argv = ["main", file, "--workdir=w"]
    if "npz" in config:
        argv.append(f"--config.data.path={path}")

    def parsed(options):
        known = flags.FlagValues()
        holder = config_flags.DEFINE_config_file(
            "config", None, "", lock_config=True, flag_values=known
        )
        flags.DEFINE_string("workdir", None, "", flag_values=known)
        monkeypatch.setattr(flags, "FLAGS", known)
        monkeypatch.setattr(main, "CONFIG", holder)
        monkeypatch.setattr(sys, "argv", [*argv, *options])  # read there once more
        main.parse([*argv, *options])
        return holder.value

    keys = st.sampled_from(
        [
            name
            for name in flatten_dict(parsed([]).to_dict(), sep=".")
            if name not in ("data.path", "latent.cache")
        ]
    )
    option = st.builds("--config.{}={}".format, keys, VALUES)

    def attempt(options):
        found = parsed(options)
        checks.check_config(found, 1)
        splits = dataset.load(found)
        shape = dataset.sample_shape(found, splits.source.train)
        checks.check_coupling(found, splits.resident)
        found = planning.with_epsilon(found, found.coupling.epsilon)
        if learning.needs_moments(found):
            found.estimator.moments = (1.0, 1.0, 0.0)
        found.estimator.noise = "white"
        mesh = parallel.make_mesh(jax.devices()[:1])
        lengths = splits.lengths
        data = dict(zip(("source", "target"), splits.train, strict=True))
        if found.coupling.method == "whole":
            return "plan between whole sets"
        training = learning.training(
            found, shape, lengths, mesh, planning.embed(found, splits)
        )
        state = jax.eval_shape(training.init)
        prepare.check_state(state, training.layout)
        jax.eval_shape(training.step, state, data)
        return "traced"

    often("options", st.lists(option, min_size=1, max_size=2), attempt)
    monkeypatch.undo()


def test_exports(often, vectors, tmp_path):
    train.train(vectors(steps=2), tmp_path / "run")
    whole = tmp_path / "run" / "export"
    files = sorted(
        str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()
    )
    content = {name: (whole / name).read_bytes() for name in files}
    # Of each class alike, however many files it has.
    classes = sorted({Path(name).parts[0] for name in files})

    expected = jax.device_get(eotjax.load(whole)._params)

    def attempt(example):
        kind, number, how, damage = example
        among = [name for name in files if Path(name).parts[0] == kind]
        name = among[number % len(among)]
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        (folder / name).unlink()
        if how == "damage":
            (folder / name).write_bytes(damaged(content[name], damage))
        elif how == "folder":
            (folder / name).mkdir()
        translator = eotjax.load(folder)
        if name == "config.json":
            return "another config"  # which may be valid
        jax.tree.map(np.testing.assert_array_equal, translator._params, expected)
        return "loaded, parameters unchanged"

    hows = st.sampled_from(["damage", "damage", "damage", "remove", "folder"])
    numbers = st.integers(0, len(files) - 1)
    example = st.tuples(st.sampled_from(classes), numbers, hows, DAMAGE)
    often("exports", example, attempt)
