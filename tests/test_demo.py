"""The page shows what the translator gives, says what is wrong, and stays at home."""

import asyncio
import contextlib
import io
import os
import shutil
import socket
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eotjax
from eotjax import demo
from eotjax.data import images
from eotjax.errors import UserError

gradio = pytest.importorskip("gradio", reason="the extra demo is not installed")


@pytest.fixture(scope="module", autouse=True)
def tidy(tmp_path_factory):
    """Gradio leaves files, and event loops that it made to make locks in."""
    made, make = [], asyncio.new_event_loop

    def spy():
        made.append(make())
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "new_event_loop", spy)
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        yield
    for loop in made:
        loop.close()
    asyncio.set_event_loop(None)


@pytest.fixture(scope="module")
def translator(trained):
    return eotjax.load(trained / "export")


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("count", [1, 4])
def test_translations_are_the_translators(translator, pixels, count):
    drawn = demo.translate(translator, pixels, count=count, seed=5)
    expected = translator(pixels[None], seed=5, num_samples=count)
    np.testing.assert_array_equal(drawn, expected.reshape(count, 16, 16, 3))


def test_sampling_is_changed_as_on_the_command_line(trained, translator, pixels):
    drawn = demo.translate(translator, pixels, count=1, steps=3, solver="ddim")
    expected = eotjax.load(trained / "export", steps=3, solver="ddim")(pixels[None])
    np.testing.assert_array_equal(drawn, expected)
    assert (drawn != demo.translate(translator, pixels, count=1)).any()


def test_what_was_compiled_is_kept(translator, pixels, monkeypatch):
    made, using = [], eotjax.Translator.using

    def spy(self, **sampling):
        made.append(sampling)
        return using(self, **sampling)

    monkeypatch.setattr(eotjax.Translator, "using", spy)
    for _ in range(2):
        demo.translate(translator, pixels, count=1, solver="ddim", steps=1)
        demo.translate(translator, pixels, count=1, steps=1, solver="ddim")
    assert made == [{"solver": "ddim", "steps": 1}]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pixels": None}, "there is no image yet; drop one, or click on an example."),
        ({"count": 0}, "the number of translations is 0; give a whole number from 1"),
        ({"count": 9}, "the number of translations is 9; .* from 1 to 8."),
        ({"seed": -1}, "the seed is -1; .* from 0 to 4294967295."),
        ({"seed": 2**32}, "the seed is 4294967296; .* from 0 to 4294967295."),
        ({"steps": 0}, "sampling.steps is 0"),
        ({"solver": "euler"}, "sampling.solver is 'euler'"),
        ({"direction": "backward"}, "trained for forward only"),
    ],
)
def test_what_does_not_fit_is_told(translator, pixels, options, said):
    with pytest.raises(UserError, match=said):
        demo.translate(translator, **{"pixels": pixels, **options})


def test_an_image_is_fitted_as_the_config_says(smoke, tmp_path):
    padding = eotjax.Translator(
        smoke(data__fit="pad"), (16, 16, 3), {}, lambda *_: None
    )
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter: 10 wide, 40 high
    Image.new("RGB", (40, 10), "white").save(tmp_path / "turned.jpg", exif=exif)
    found = demo.fitted(padding, tmp_path / "turned.jpg")
    assert found[:, 6:10].all() and not found[:, :5].any() and not found[:, 11:].any()


def test_a_file_that_is_no_image_is_named_without_its_folder(translator, tmp_path):
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(UserError) as told:
        demo.fitted(translator, tmp_path / "x.png")
    assert str(told.value) == (
        "cannot read x.png as an image; drop a PNG, JPEG or WebP file."
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_are_enlarged_by_a_whole_factor(channels):
    small = np.random.default_rng(0).integers(0, 256, (16, 24, channels), np.uint8)
    shown = demo.enlarged(small)
    assert shown.shape[:2] == (16 * 21, 24 * 21)
    expected = Image.fromarray(small.squeeze()).resize(
        (24 * 21, 16 * 21), Image.Resampling.NEAREST
    )
    np.testing.assert_array_equal(shown, np.asarray(expected))
    large = np.zeros((600, 300, 3), np.uint8)
    np.testing.assert_array_equal(demo.enlarged(large), large)


def components(blocks):
    """The properties of the page's components by label."""
    config = blocks.get_config_file()
    return {part["props"].get("label"): part["props"] for part in config["components"]}


def test_controls_begin_at_the_exports_values(trained, translator):
    found = components(demo.page(trained / "export", translator))
    assert found["Steps"]["value"] == 2 and found["Steps"]["maximum"] == 200
    assert found["Solver"]["value"] == "ancestral"
    assert {name for _, name in found["Solver"]["choices"]} == set(translator.solvers)
    assert (found["How many"]["value"], found["How many"]["maximum"]) == (4, 8)
    assert not found["Direction"]["visible"] and not found["Guidance"]["visible"]


def test_direction_and_guidance_are_shown_where_trained(trained, smoke):
    config = smoke(
        estimator__direction="both",
        estimator__condition_dropout=0.1,
        sampling__steps=500,
        sampling__guidance=2.5,
    )
    both = eotjax.Translator(config, (16, 16, 3), {}, lambda *_: None)
    found = components(demo.page(trained / "export", both))
    assert found["Direction"]["visible"] and found["Guidance"]["visible"]
    assert found["Direction"]["choices"] == [
        ("trainA to trainB", "forward"),
        ("trainB to trainA", "backward"),
    ]
    assert found["Guidance"]["value"] == 2.5
    assert found["Steps"]["value"] == found["Steps"]["maximum"] == 500


def test_what_only_a_bridge_has_is_shown_for_it(trained, smoke):
    names = ("Guidance", "Temperature", "Restart")
    late = {"estimator__name": "bridge", "sampling__restart": 0.97}
    for config, shown in (
        (smoke(), (False, False, False)),
        (smoke(**late), (False, True, True)),
        (smoke(estimator__name="bridge", estimator__direction="both"), (True,) * 3),
    ):
        translator = eotjax.Translator(config, (16, 16, 3), {}, lambda *_: None)
        found = components(demo.page(trained / "export", translator))
        assert tuple(found[name]["visible"] for name in names) == shown
        for name in names:
            lowest, value, highest = (
                found[name][key] for key in ("minimum", "value", "maximum")
            )
            assert lowest <= value <= highest


def test_no_file_of_the_machine_is_shown(trained, translator, tmp_path):
    """A path that is not Gradio's own comes from a forged request."""
    path = tmp_path / "private.png"
    Image.new("RGB", (16, 16)).save(path)
    blocks = demo.page(trained / "export", translator)
    see = next(found.fn for found in blocks.fns.values() if found.name == "see")
    with pytest.warns(UserWarning, match="no file that was dropped here"):
        assert see({"path": str(path)}) == (None, None)
    kept = Path(os.environ["GRADIO_TEMP_DIR"], "dropped.png")
    shutil.copy(path, kept)
    assert see({"path": str(kept)})[1].shape == (16, 16, 3)


def test_vectors_are_refused(vectors, tmp_path):
    translator = eotjax.Translator(vectors(), (3,), {}, lambda *_: None)
    with pytest.raises(UserError, match="vectors, not images"):
        demo.page(tmp_path, translator)


def test_without_gradio_the_command_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr("sys.argv", ["demo", f"--export={tmp_path}"])
    with pytest.raises(UserError, match=r"launch/install.sh demo brings it"):
        demo.run()


def test_the_command_refuses_in_one_sentence(command, tmp_path):
    done = command("eotjax.demo", f"--export={tmp_path / 'none'}")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"eotjax: {tmp_path / 'none'} is no eotjax export")
    assert done.stderr.count("\n") == 1


def test_the_command_compiles_and_then_names_the_address(trained, monkeypatch):
    visited = []

    def visit(blocks):
        with urllib.request.urlopen(blocks.local_url) as answer:
            visited.append((blocks.local_url, answer.status))
        blocks.close()

    monkeypatch.setattr(gradio.Blocks, "block_thread", visit)
    monkeypatch.setattr("sys.argv", ["demo", f"--export={trained / 'export'}"])
    # With capsys uvicorn would log to what pytest closes.
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert demo.run() == 0
    ((address, status),) = visited
    assert address.startswith("http://127.0.0.1:") and status == 200
    said = printed.getvalue().splitlines()
    assert said[0].startswith("compiling")
    assert said[1] == f"open {address} in a browser; Ctrl-C ends it."


def test_an_address_that_is_taken_or_none_is_told(trained, translator):
    blocks = demo.page(trained / "export", translator)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port}: it is taken"):
            demo.serve(blocks, port=port)
    for wrong in ({"port": 99_999}, {"host": "192.0.2.1"}):  # of RFC 5737: nobody's
        with pytest.raises(UserError, match=r"cannot serve at .* --port or --host\."):
            demo.serve(blocks, **wrong)


@pytest.fixture(scope="module")
def asked():
    """The hosts that this process looks up or connects to from now on."""
    hosts, connect, look_up = [], socket.socket.connect, socket.getaddrinfo

    def connecting(self, address):
        if self.family != socket.AF_UNIX:
            hosts.append(address[0])
        return connect(self, address)

    def looking_up(host, *arguments, **options):
        hosts.append(host)
        return look_up(host, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connecting)
        patch.setattr(socket, "getaddrinfo", looking_up)
        yield hosts


@pytest.fixture(scope="module")
def site(trained, translator, pixels, asked, tmp_path_factory):
    """The address of the page of an artefact with an example."""
    folder = shutil.copytree(trained / "export", tmp_path_factory.mktemp("site") / "e")
    (folder / "examples" / "forward").mkdir(parents=True, exist_ok=True)
    images.write(folder / "examples" / "forward" / "00.png", pixels)
    blocks = demo.page(folder, translator)
    yield demo.serve(blocks, max_upload_mb=0.05)
    blocks.close()


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium on the path")
    reason = "playwright is not installed"
    api = pytest.importorskip("playwright.sync_api", reason=reason)
    with api.sync_playwright() as playwright:
        # Containers lack the sandbox, and often all but 64 MB of shared memory.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        yield playwright.chromium.launch(executable_path=chromium, args=arguments)


@pytest.fixture
def opened(browser, site, asked):
    """The page in a browser; nothing but this machine is asked for anything."""
    view = browser.new_page(viewport={"width": 1280, "height": 900})
    view.set_default_timeout(120_000)
    requests = []
    view.on("request", lambda request: requests.append(request.url))
    view.goto(site)
    view.get_by_role("button", name="Translate").wait_for()
    yield view
    view.close()
    assert site in requests
    assert [url for url in requests if not url.startswith((site, "data:"))] == []
    assert set(asked) == {"127.0.0.1"}


def shoot(view, name, tmp_path):
    for folder in filter(None, [tmp_path, os.environ.get("EOTJAX_SCREENSHOTS")]):
        view.screenshot(path=Path(folder) / name)


def shown(view, count):
    """The gallery's images, at the model's size."""
    pictures = view.locator(".grid-container img")
    pictures.nth(count - 1).wait_for()
    assert pictures.count() == count
    found = []
    for picture in pictures.all():
        answer = view.request.get(picture.get_attribute("src"))
        with Image.open(io.BytesIO(answer.body())) as image:
            assert (image.format, image.size) == ("PNG", (512, 512))
            found.append(np.asarray(image)[::32, ::32])
    return np.stack(found)


def drop(view, path):
    view.set_input_files("input[type=file]", path)


def press(view, name="Translate"):
    view.get_by_role("button", name=name).click()


def seen(view):
    """Waits until the page shows the image as the model sees it."""
    view.wait_for_function(
        "() => document.querySelector('.image-frame img')?.naturalWidth === 512"
    )


def test_the_page_shows_what_the_translator_gives(opened, translator, pixels, tmp_path):
    assert opened.title() == "eotjax"
    heading = opened.get_by_role("heading", name="digits: trainA to trainB")
    heading.first.wait_for()  # until it is visible
    for label in ("How many", "Steps", "Solver", "Seed"):
        opened.get_by_label(label).first.wait_for()
    assert not opened.get_by_text("Direction").is_visible()
    shoot(opened, "page_before.png", tmp_path)

    Image.fromarray(pixels).save(tmp_path / "mine.png")
    drop(opened, tmp_path / "mine.png")
    seen(opened)
    opened.get_by_label("Seed").fill("11")
    press(opened)
    expected = translator(pixels[None], seed=11, num_samples=4)[:, 0]
    np.testing.assert_array_equal(shown(opened, 4), expected)
    shoot(opened, "page_after.png", tmp_path)

    before = opened.locator(".grid-container img").first.get_attribute("src")
    press(opened, "Another seed")
    opened.wait_for_function(
        "before => document.querySelector('.grid-container img').src !== before",
        arg=before,
    )
    seed = int(opened.get_by_label("Seed").input_value())
    expected = translator(pixels[None], seed=seed, num_samples=4)[:, 0]
    assert seed != 11
    np.testing.assert_array_equal(shown(opened, 4), expected)


def test_an_example_is_translated_at_the_press_of_a_button(opened, translator, pixels):
    opened.locator("button.gallery-item").first.click()
    seen(opened)
    opened.get_by_label("number input for How many").fill("2")
    opened.get_by_label("number input for Steps").fill("3")
    opened.get_by_label("number input for Steps").press("Tab")
    press(opened)
    expected = translator.using(steps=3)(pixels[None], num_samples=2)[:, 0]
    np.testing.assert_array_equal(shown(opened, 2), expected)


def test_what_is_wrong_is_said_in_the_page(opened, tmp_path):
    def said(sentence):
        opened.get_by_text(sentence).wait_for()

    press(opened)
    said("There is no image yet; drop one, or click on an example.")
    (tmp_path / "x.png").write_text("no image")
    drop(opened, tmp_path / "x.png")
    said("Cannot read x.png as an image; drop a PNG, JPEG or WebP file.")
    (tmp_path / "large.png").write_bytes(bytes(60_000))
    drop(opened, tmp_path / "large.png")
    said('exceed the maximum allowed size of 51.2 Kb: "large.png"')
    opened.locator("button.gallery-item").first.click()
    seen(opened)
    opened.get_by_label("Seed").fill("-3")
    press(opened)
    said("The seed is -3; give a whole number from 0 to 4294967295.")
    assert "Traceback" not in opened.content()
    assert opened.locator(".grid-container img").count() == 0
