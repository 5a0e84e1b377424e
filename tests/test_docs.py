"""The documents: what they link to and name is there, what is made is up to date."""

import argparse
import importlib
import itertools
import re
import shlex
import subprocess
import sys
import tomllib
import warnings
from unittest import mock

import pytest
from absl import flags
from conftest import ROOT, keys_of
from ml_collections import ConfigDict, config_flags

from configs import default
from eotjax import main  # noqa: F401  (defines the flags of the training command)

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "colab/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
CODE = re.compile(r"(`+)(.+?)\1", re.S)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PLACEHOLDER = re.compile(r"[A-Z]+")  # a variant that the text explains: configs/x.py:E
BETWEEN = ("", "&&", "||", "|", "&", "do")  # commands of one line
# Scripts that pass their last arguments on to eotjax.main.
LAUNCHERS = ("launch/multiprocess.sh", "launch/slurm.sbatch", "launch/tpu_vm.sh")
# Commands that use argparse.
PARSERS = ("translate", "evaluate", "export", "features", "pairs", "demo")


def prose(text):
    """A page without its blocks of code."""
    return FENCE.sub("", text)


def slugs(text):
    """The anchors of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} +(.+?)\s*$", prose(text), re.M):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # links as their text
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        number = found.get(slug, 0)
        found[slug] = number + 1
        yield f"{slug}-{number}" if number else slug


def broken_links(page, text):
    """Relative links of a page at `page` that lead nowhere."""
    for link in LINK.findall(CODE.sub("", prose(text))):
        if re.match(r"[a-z]+:", link):  # https:, mailto:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            yield f"{link}: there is no such file"
        elif anchor and anchor not in slugs(target.read_text() if path else text):
            yield f"{link}: there is no such heading"


def commands(text):
    """The commands in a page's blocks of code, as lists of words."""
    for language, block in FENCE.findall(text):
        if language == "python":
            continue
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            if not re.search(r"eotjax\.|launch/|benchmarks/", line):
                continue
            try:
                words = shlex.split(line, comments=True)
            except ValueError:  # an apostrophe: not a command
                continue
            command: list[str] = []
            for word in words:
                bare = word.rstrip(";")
                if bare not in BETWEEN:
                    command.append(bare)
                if bare != word or bare in BETWEEN:
                    yield command
                    command = []
            yield command


class Parsed(Exception):
    """Carries a command's parser out of it."""


def parser_of(module, monkeypatch):
    """The argparse parser of a command."""

    def stop(self, *_, **__):
        raise Parsed(self)

    with monkeypatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Parsed) as caught:
            importlib.import_module(f"eotjax.{module}").run()
    return caught.value.args[0]


def config_flaw(arguments):
    """What is wrong with --config and --config.key=value, None where nothing is."""
    given = []
    if not any(argument.startswith("--config=") for argument in arguments):
        given.append(f"--config={ROOT}/configs/default.py")
    for argument in arguments:
        if argument.startswith("--config="):
            path, _, words = argument.removeprefix("--config=").partition(":")
            words = [w for w in words.split(",") if not PLACEHOLDER.fullmatch(w)]
            if not (ROOT / path).is_file():
                return f"there is no file {path}"
            argument = f"--config={ROOT / path}:{','.join(words)}"
        given.append(argument)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True)
    try:
        argv = ["eotjax.main", *given]
        with warnings.catch_warnings(), mock.patch.object(sys, "argv", argv):
            # How ml_collections loads a config.
            warnings.filterwarnings("ignore", message=r"the load_module\(\) method")
            values(argv)
            values.config.keys()
    except (flags.Error, AttributeError, ValueError, TypeError, OSError) as error:
        return str(error).strip().splitlines()[-1]
    return None


def main_flaw(arguments):
    """What is wrong with the arguments of eotjax.main."""
    mine = [word for word in arguments if re.match(r"--config[.=]", word)]
    for word in arguments:
        name = re.match(r"--(\w+)(=|$)", word)
        if word not in mine and (
            name is None
            or flags.FLAGS.find_module_defining_flag(name[1]) != "eotjax.main"
        ):
            return f"it takes no {word}"
    for name in ("--config=", "--workdir="):
        if not any(word.startswith(name) for word in arguments):
            return f"it needs {name}"
    return config_flaw(mine)


def argparse_flaw(parser, arguments):
    """What is wrong with the arguments of a command that uses argparse."""

    def stop(message):
        raise Parsed(message)

    parser.error = stop
    try:
        parser.parse_args(arguments)
    except Parsed as error:
        return str(error)
    return None


def script_flaw(path, arguments):
    """What is wrong with a call of a script in launch/ or benchmarks/."""
    if not (ROOT / path).is_file():
        return f"there is no {path}"
    if path.endswith("install.sh"):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        unknown = set(arguments) - set(project["optional-dependencies"])
        return f"there is no extra {unknown}" if unknown else None
    if path in LAUNCHERS:
        own = itertools.takewhile(lambda word: "config" not in word, arguments)
        return main_flaw(arguments[len(list(own)) :])
    source = (ROOT / path).read_text()
    for word in arguments:
        name = re.match(r"--(\w+)", word)
        defined = rf'(DEFINE_\w+|add|add_argument)\(\s*"(--)?{name and name[1]}"'
        if name and not re.search(defined, source):
            return f"it takes no {word}"
    return config_flaw([w for w in arguments if re.match(r"--config[.=]", w)])


def command_flaw(words, monkeypatch):
    """What is wrong with a command, None where nothing is."""
    for place, word in enumerate(words):
        script = re.fullmatch(r"(?:\./)?((?:launch|benchmarks)/\w+\.\w+)", word)
        if script:
            return script_flaw(script[1], words[place + 1 :])
        if word == "-m" and words[place + 1 : place + 2]:
            module, arguments = words[place + 1], words[place + 2 :]
            package, _, name = module.partition(".")
            if package != "eotjax":
                return None
            if not (ROOT / "eotjax" / f"{name}.py").is_file():
                return f"there is no module {module}"
            if name == "main":
                return main_flaw(arguments)
            if name not in PARSERS:
                return f"{module} is no command"
            return argparse_flaw(parser_of(name, monkeypatch), arguments)
    return None


@pytest.fixture(scope="module")
def configuration():
    """launch/configuration_page.py as a module."""
    path = ROOT / "launch" / "configuration_page.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_the_configuration_is_what_its_script_writes(configuration):
    assert configuration.PAGE.read_text() == configuration.page(), (
        f"configs/ has changed; run: {configuration.COMMAND}"
    )


def test_the_script_runs_alone_and_changes_nothing(configuration):
    before = configuration.PAGE.read_bytes()
    try:
        command = [sys.executable, *configuration.COMMAND.split()[1:]]
        subprocess.run(command, cwd=ROOT, check=True)
        assert configuration.PAGE.read_bytes() == before
    finally:
        configuration.PAGE.write_bytes(before)


def test_the_page_has_every_key_with_the_value_it_has(configuration):
    source = (ROOT / "configs" / "default.py").read_text()
    found = {k.name: k.default for g in configuration.groups(source) for k in g.keys}
    config = default.get_config()
    assert list(found) == list(dict.fromkeys(found))
    assert set(found) == set(keys_of(config))
    for name, written in found.items():
        value = config
        for part in name.split("."):
            value = value[part]
        assert eval(written) == value, name
        assert f"| `{name}` |" in configuration.PAGE.read_text()


def test_comments_are_taken_whole_and_by_key(configuration):
    source = """
def get_config(variants=""):
    c = ConfigDict()
    c.steps = 1_000  # of training
    # of the next key's neighbour

    c.net = ConfigDict()  # a network
    c.net.sizes = (
        1,  # small
        2,
    )  # and large
    c.net.plain = "#"
    return c
"""
    top, net = configuration.groups(source)
    assert top.keys == [("steps", "1_000", "of training of the next key's neighbour")]
    assert (net.name, net.meaning) == ("net", "a network")
    assert [(k.name, k.meaning) for k in net.keys] == [
        ("net.sizes", "small and large"),
        ("net.plain", ""),
    ]


def test_a_bar_in_a_cell_is_no_end_of_it(configuration):
    assert configuration.table(("a",), [("|x|",)]) == "| a |\n| --- |\n| \\|x\\| |\n"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_relative_link_leads_somewhere(page):
    assert list(broken_links(page, page.read_text())) == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_is_one_that_there_is(page, monkeypatch):
    flaws = {
        shlex.join(words): flaw
        for words in commands(page.read_text())
        if (flaw := command_flaw(words, monkeypatch))
    }
    assert flaws == {}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_option_and_config_in_the_text_is_one_that_there_is(page, monkeypatch):
    known = {"config", "workdir", "distributed"}
    for name in PARSERS:
        options = parser_of(name, monkeypatch)._option_string_actions
        known |= {option.removeprefix("--") for option in options}
    for path in [*ROOT.glob("launch/*.py"), *ROOT.glob("benchmarks/*.py")]:
        known |= set(re.findall(r'(?:DEFINE_\w+\(\s*"|"--)(\w+)"', path.read_text()))
    flaws = []
    for _, code in CODE.findall(prose(page.read_text())):
        if re.match(r"--config[.=]", code):
            words = [word for word in shlex.split(code) if word[:8] == "--config"]
            flaws += [f for f in [config_flaw(words)] if f]
        elif option := re.match(r"--([\w-]+)", code):
            flaws += [] if option[1] in known else [f"there is no --{option[1]}"]
        elif re.fullmatch(r"configs/\w+\.py(:[\w,]+)?", code):
            flaws += [f for f in [config_flaw([f"--config={code}"])] if f]
    assert flaws == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_key_in_the_text_is_one_that_there_is(page):
    """`group.key` is a key of the config, or a name in a module of eotjax."""
    config, unknown = default.get_config(), []
    for _, code in CODE.findall(prose(page.read_text())):
        name = re.match(r"(\w+)\.(\w+)(?= = |=|$)", code)
        if name is None or not isinstance(config.get(name[1]), ConfigDict):
            continue
        if name[2] in config[name[1]] or name[2] == "py":
            continue
        modules = (ROOT / "eotjax").rglob(f"{name[1]}.py")
        if any(re.search(rf"\b{name[2]}\b", path.read_text()) for path in modules):
            continue
        unknown.append(code)
    assert unknown == []


def test_what_is_wrong_is_found(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("# One `two`: three\n# One\n# One\n")
    text = page.read_text()
    assert list(slugs(text)) == ["one-two-three", "one", "one-1"]
    good = "[a](page.md#one-1) [b\nc](#one) [d](https://x.y/z) `[e](f)`"
    assert list(broken_links(page, text + good)) == []
    bad = "[a](none.md) [b](#two) [c](page.md#One)"
    assert len(list(broken_links(page, text + bad))) == 3

    good = """
```sh
A=1 python -m eotjax.main --config=configs/digits.py:E,smoke --workdir=R \\
  --config.data.image_size='(8, 8)' --distributed & # configs
./launch/install.sh dev; python -m eotjax.translate --export=R --input=I --output=O
```
"""
    found = [words for words in commands(good) if words]
    assert len(found) == 3
    assert not any(command_flaw(words, monkeypatch) for words in found)
    run = "python -m eotjax.main --workdir=R --config=configs/digits.py"
    for wrong in (
        "python -m eotjax.mian --workdir=R",
        "python -m eotjax.data",
        "python -m eotjax.main --workdir=R",
        f"{run}:smok",
        f"{run} --config.data.size=1",
        f"{run} --config.steps=many",
        f"{run} --resume",
        run.replace("digits", "digit"),
        "python -m eotjax.translate --export=R --input=I",
        "python -m eotjax.translate --export=R --input=I --output=O --step_size=1",
        "python -m eotjax.evaluate --export=R --steps=few",
        "launch/instal.sh",
        "launch/install.sh gpu",
        "python benchmarks/known_plans.py --folders=R",
    ):
        assert command_flaw(shlex.split(wrong), monkeypatch), wrong
