"""The page: drop an image, see its translations. It needs the extra `demo` (Gradio).

python -m eotjax.demo --export=FOLDER
"""

import argparse
import os
import random
import re
import socket
import tempfile
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import UInt8

from eotjax import command, remote
from eotjax.artefact import export
from eotjax.artefact.translator import Translator
from eotjax.data import images
from eotjax.data.images import Pixels
from eotjax.errors import UserError, require
from eotjax.evaluation import card

MOST_IMAGES = 8
MOST_STEPS = 200
SHOWN = 512  # pixels that smaller images are enlarged to, about
SIDE = 360  # CSS pixels that the page leaves for them
SOLVERS = {
    "ancestral": "ancestral: fresh noise",
    "ddim": "ddim: no fresh noise",
    "heun": "heun: finer, half as fast",
    "dpmpp_2m": "dpmpp_2m: for few steps",
    "dpmpp_2m_sde": "dpmpp_2m_sde: few, noisy",
}
SAMPLING = ("steps", "solver", "guidance", "temperature", "restart")
CSS = """
.gradio-container {width: 100%; max-width: 1180px !important; margin: auto !important}
[id^=small] img {image-rendering: pixelated}
"""


def fitted(translator: Translator, path: str | Path) -> Pixels:
    """An image file as the translator takes it, by its config's `data.fit`.

    Raises:
      UserError: the file is no image that can be read.
    """
    height, width, channels = translator.shape
    fit = translator.config.data.fit
    try:
        return images.decode(path, size=(height, width), channels=channels, fit=fit)
    except UserError as error:
        raise UserError(
            f"cannot read {Path(path).name} as an image; drop a PNG, JPEG or WebP file."
        ) from error


def enlarged(pixels: Pixels) -> np.ndarray:
    """As the page shows an image: each pixel of a small one is a square."""
    zoom = max(SHOWN // max(pixels.shape[:2]), 1)
    shown = images.grid([pixels[None]], zoom=zoom, gap=0)
    return shown.squeeze(-1) if shown.shape[-1] == 1 else shown


@lru_cache(maxsize=8)
def _using(translator: Translator, sampling: frozenset) -> Translator:
    """`translator.using`, so that what it compiles is kept."""
    return translator.using(**dict(sampling))


def translate(
    translator: Translator,
    pixels: Pixels | None,
    *,
    count: int = 4,
    seed: int = 0,
    direction: str = "forward",
    **sampling,
) -> UInt8[np.ndarray, "k h w c"]:
    """What the translator makes of one image, `count` times.

    Args:
      translator: of images.
      pixels: of the trained size; None where there is no image yet.
      count: of translations.
      seed: another one gives other translations.
      direction: forward, from source to target, or backward.
      **sampling: other values for the config's sampling keys.

    Raises:
      UserError: there is no image, or a value is out of its range.
    """
    if pixels is None:
        raise UserError("there is no image yet; drop one, or click on an example.")
    for name, value, least, most in (
        ("the number of translations", count, 1, MOST_IMAGES),
        ("the seed", seed, 0, 2**32 - 1),
    ):
        require(
            least <= value <= most,
            f"{name} is {value}; give a whole number from {least} to {most}.",
        )
    drawn = _using(translator, frozenset(sampling.items()))(
        pixels[None], seed=seed, num_samples=count, direction=direction
    )
    return drawn.reshape(count, *pixels.shape)


def page(folder: str | Path, translator: Translator) -> Any:
    """The page, as Gradio's Blocks.

    Args:
      folder: of the artefact: its description, card and examples are shown.
      translator: that was loaded from it.

    Raises:
      UserError: the translator is for vectors, or Gradio is not installed.
    """
    if len(translator.shape) != 3:
        raise UserError(
            "this export translates vectors, not images; call eotjax.load from Python."
        )
    gr, folder = _gradio(), remote.fetched(folder)
    config, sampling = translator.config, translator.config.sampling
    height, width, _ = translator.shape
    ways = _ways(translator)

    def warn(error: UserError) -> None:
        sentence = str(error)
        gr.Warning(sentence[0].upper() + sentence[1:])

    def see(file: Mapping | None) -> tuple:
        """What is shown of a file, and its pixels."""
        try:
            pixels = fitted(translator, uploaded(file)) if file else None
        except UserError as error:
            warn(error)
            pixels = None
        return (None, None) if pixels is None else (enlarged(pixels), pixels)

    def uploaded(file: Mapping) -> Path:
        """Its path, where it is Gradio's own: who asks may name any of this machine."""
        path = Path(file["path"]).resolve()
        require(
            path.is_relative_to(Path(image.GRADIO_CACHE).resolve()),
            "this is no file that was dropped here; drop one.",
        )
        return path

    def draw(pixels, direction, count, seed, *values):
        options = {"direction": direction, "count": count, "seed": seed or 0}
        options |= dict(zip(SAMPLING, values, strict=True))
        try:
            return [enlarged(x) for x in translate(translator, pixels, **options)]
        except UserError as error:
            warn(error)
            return gr.skip()

    hour = 60 * 60  # every one the uploads of a day ago are deleted
    with gr.Blocks(
        title="eotjax", analytics_enabled=False, delete_cache=(hour, 24 * hour)
    ) as blocks:
        gr.Markdown(_heading(export.describe(folder), ways["forward"]))
        pixels = gr.State()
        with gr.Row():
            with gr.Column(scale=3, min_width=280):
                gr.Markdown(f"**Your image**, as the model sees it: {width}x{height}")
                image = gr.Image(
                    show_label=False, sources="upload", format="png", height=SIDE
                )
                direction = gr.Radio(
                    [(way, name) for name, way in ways.items()],
                    value="forward",
                    label="Direction",
                    visible=len(ways) > 1,
                )
            with gr.Column(scale=5, min_width=280):
                gr.Markdown("**Translations**; click on one to see it larger")
                gallery = gr.Gallery(
                    show_label=False,
                    format="png",
                    columns=4,
                    height=SIDE,
                    object_fit="contain",
                    buttons=["download"],
                )
        with gr.Row():
            start = gr.Button("Translate", variant="primary", scale=3)
            again = gr.Button("Another seed", scale=5)
        with gr.Row():
            whole = partial(gr.Slider, 1, step=1, precision=0)
            count = whole(MOST_IMAGES, 4, label="How many", info="translations")
            most = max(MOST_STEPS, sampling.steps)
            steps = whole(most, sampling.steps, label="Steps", info="more: slower")
            solver = gr.Dropdown(
                [(SOLVERS.get(name, name), name) for name in translator.solvers],
                value=sampling.solver,
                label="Solver",
                info="how noise becomes an image",
                min_width=250,
            )
            seed = gr.Number(
                0, precision=0, label="Seed", info="same seed, same answer"
            )
            guidance = gr.Slider(
                minimum=min(0, sampling.guidance),
                maximum=sampling.guidance + 4,
                value=sampling.guidance,
                step=0.1,
                label="Guidance",
                info="1: plain",
                visible=translator.guidable,
            )
            of_bridges = partial(
                gr.Slider, step=0.05, visible=config.estimator.name == "bridge"
            )
            temperature = of_bridges(
                minimum=0,
                maximum=max(1, sampling.temperature),
                value=sampling.temperature,
                label="Temperature",
                info="of the noise; 1: all of it",
            )
            restart = of_bridges(
                minimum=0,
                maximum=max(0.95, sampling.restart),
                value=sampling.restart,
                label="Restart",
                info="back to this time, and on again; 0: once",
            )
        # One after the other: what is drawn is of the image that was dropped last.
        one = {"concurrency_id": "one", "concurrency_limit": 1}
        looking: dict[str, Any] = {"fn": see, "inputs": image, **one}
        looking |= {"outputs": [image, pixels], "show_progress": "hidden"}
        # Gradio's own reading of a file that is no image ends in a traceback.
        looking |= {"preprocess": False}
        drawing: dict[str, Any] = {"fn": draw, "outputs": gallery, **one}
        drawing["inputs"] = [pixels, direction, count, seed]
        drawing["inputs"] += [steps, solver, guidance, temperature, restart]
        image.upload(**looking)
        image.clear(lambda: None, None, pixels)
        start.click(**drawing)
        again.click(lambda: random.randrange(10**6), None, seed).then(**drawing)

        small = "small" if max(height, width) < 64 else "large"
        for name, way in ways.items():
            files = sorted(Path(folder, "examples", name).glob("*.png"))
            if files:
                gr.Examples(
                    [[str(file), name] for file in files],
                    [image, direction],
                    label=f"Examples, {way}",
                    elem_id=f"{small}-{name}",
                    cache_examples=False,
                    visible_columns=[0],
                    examples_per_page=16,
                ).load_input_event.then(**looking)
        readme = Path(folder, "README.md")
        if readme.exists():
            with gr.Accordion("About this model", open=False):
                front_matter = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
                gr.Markdown(front_matter.sub("", readme.read_text(encoding="utf-8")))
    return blocks


def _ways(translator: Translator) -> dict[str, str]:
    """The translator's directions, in the words of its data."""
    data = translator.config.data
    source, target = data.train_source, data.train_target
    ways = {"forward": f"{source} to {target}", "backward": f"{target} to {source}"}
    return {name: ways[name] for name in translator.directions}


def _heading(description: Mapping, way: str) -> str:
    """What the page does and what the model is, in Markdown."""
    config, (height, width, _) = description["config"], description["shape"]
    name = card.data_name(config)
    return (
        f"# {name}: {way}\n\nDrop an image and press **Translate**. Each answer is a "
        "draw: there are many, and none is the only right one.<br><small>This model: "
        f"{name}, {width}x{height} pixels, {description['step']:,} training steps, "
        f"estimator {config['estimator']['name']}.</small>"
    )


def _gradio() -> ModuleType:
    try:
        import gradio
    except ImportError as error:
        raise UserError(
            f"the page needs Gradio ({error}); launch/install.sh demo brings it."
        ) from error
    return gradio


def serve(
    blocks: Any,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    max_upload_mb: float = 20,
) -> str:
    """Serves the page from threads of its own; returns its address.

    Nothing is sent or fetched elsewhere: no share link, no telemetry, no fonts.

    Raises:
      UserError: the address is taken or not this machine's.
    """
    themes = _gradio().themes
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}
    fonts = {role: [*map(themes.Font, names)] for role, names in fonts.items()}
    try:
        # Gradio tries a hundred ports, seconds each, before it says what is wrong.
        host, version_6 = host.strip("[]"), ":" in host
        family = socket.AF_INET6 if version_6 else socket.AF_INET
        with socket.socket(family) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port or 0))
        _, address, _ = blocks.launch(
            server_name=f"[{host}]" if version_6 else host,
            server_port=port,
            max_file_size=int(max_upload_mb * 2**20),
            theme=themes.Default(**fonts),
            css=CSS,
            footer_links=[],
            share=False,
            run_history=False,
            enable_monitoring=False,
            prevent_thread_lock=True,
            quiet=True,
        )
    except (OSError, OverflowError) as error:
        if getattr(error, "filename", None):  # of a file, not of the address
            raise
        raise UserError(
            f"cannot serve at {host}, port {port or 'any'}: it is taken, or not this "
            "machine's; give another --port or --host."
        ) from error
    return address


def run() -> int:
    """Serves the page of the artefact that the command line names, until Ctrl-C."""
    parser = argparse.ArgumentParser(description="A page that translates images.")
    export.add_arguments(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="0.0.0.0: for other machines as well")
    add("--port", type=int, help="instead of the first free one from 7860")
    add("--max_upload_mb", type=float, default=20, help="of one image")
    arguments = parser.parse_args()
    if arguments.max_upload_mb <= 0:
        parser.error("--max_upload_mb must be positive")
    with tempfile.TemporaryDirectory(prefix="eotjax-") as kept:
        # Else what is dropped lies in a folder that is the same for all users.
        os.environ.setdefault("GRADIO_TEMP_DIR", kept)
        return _served(arguments)


def _served(arguments: argparse.Namespace) -> int:
    """Serves until Ctrl-C; run's status."""
    _gradio()  # before the model is loaded
    translator = export.load_named(arguments)
    blocks = page(arguments.export, translator)
    print("compiling, which takes some seconds", flush=True)
    sampling = {name: translator.config.sampling[name] for name in SAMPLING}
    translate(translator, np.zeros(translator.shape, np.uint8), **sampling)
    options = {name: getattr(arguments, name) for name in ("host", "port")}
    address = serve(blocks, max_upload_mb=arguments.max_upload_mb, **options)
    print(f"open {address} in a browser; Ctrl-C ends it.", flush=True)
    blocks.block_thread()
    return 0


if __name__ == "__main__":
    command.exit_after(run)
