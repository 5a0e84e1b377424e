"""Writes docs/configuration.md from configs/: python launch/configuration_page.py.

Keys, defaults and their meanings are those of configs/default.py, comments included;
tests/test_docs.py holds the page to it.
"""

import ast
import importlib
import inspect
import io
import sys
import tokenize
from pathlib import Path
from typing import NamedTuple

from flax.traverse_util import flatten_dict

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "configuration.md"
COMMAND = "python launch/configuration_page.py"

HEAD = f"""\
# Every key of a configuration

Made by `{COMMAND}` from
[configs/default.py](../configs/default.py); change it there.

Any key can be set on the command line, `--config.coupling.epsilon=0.01`, a tuple in
quotes, `--config.model.attention='(8,)'`. A file changes some of the defaults,
and words after a colon change it further, in turn:
[configs and variants](#configs-and-variants). A row without a meaning goes with the one
above it, or with the line above its table.
"""

VARIANTS = """
## Configs and variants

Of these words, which all files know, several can stand after a colon, with commas
between: `configs/digits.py:cdiffe,smoke`.

"""


class Key(NamedTuple):
    """A key of a config, as configs/default.py writes it."""

    name: str  # with its group: coupling.epsilon
    default: str
    meaning: str


class Group(NamedTuple):
    """The keys of a ConfigDict inside the config; the first one's are the top's."""

    name: str
    meaning: str
    keys: list[Key]


def comments(source: str) -> dict[int, tuple[str, bool]]:
    """The comments by line, and whether they have the line for themselves."""
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            alone = not token.line[: token.start[1]].strip()
            found[token.start[0]] = (token.string.lstrip("# "), alone)
    return found


def groups(source: str) -> list[Group]:
    """What `get_config` in the source of configs/default.py assigns, group by group."""
    said = comments(source)

    def meaning(statement: ast.stmt) -> str:
        """The comments on a statement's lines, and those alone on the lines below."""
        first, last = statement.lineno, statement.end_lineno or statement.lineno
        lines = [said[n][0] for n in range(first, last + 1) if n in said]
        line = last + 1
        while line in said and said[line][1]:
            lines.append(said[line][0])
            line += 1
        return " ".join(lines)

    function = next(
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "get_config"
    )
    found = [Group("", "", [])]
    for statement in function.body:
        if not isinstance(statement, ast.Assign):
            continue
        value = ast.get_source_segment(source, statement.value) or ""
        for target in statement.targets:
            name = ast.unparse(target).partition(".")[2]
            if value == "ConfigDict()" and name:
                found.append(Group(name, meaning(statement), []))
            elif name:
                group = next(g for g in found if g.name == name.rpartition(".")[0])
                group.keys.append(Key(name, value, meaning(statement)))
    return found


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Rows of Markdown; a | inside a cell is escaped."""
    lines = [header, ("---",) * len(header), *rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n"
        for line in lines
    )


def sentence(comment: str) -> str:
    """A comment with a capital, unless it begins with a name, and a full stop."""
    if comment.partition(" ")[0].isalpha():
        comment = comment[0].upper() + comment[1:]
    return f"{comment.rstrip('.')}."


def first_paragraph(text: str | None) -> str:
    """Of a docstring, in one line."""
    return " ".join((text or "").strip().partition("\n\n")[0].split())


def changes(config, base) -> str:
    """The keys in which a config differs from another: `steps = 4`, ..."""
    was, now = (flatten_dict(x.to_dict(), sep=".") for x in (base, config))
    return ", ".join(f"`{k} = {v!r}`" for k, v in now.items() if v != was[k])


def variant_rows(module) -> list[tuple[str, ...]]:
    """A row for each variant of a config: what it is for, and what it changes."""
    base, rows = module.get_config(), []
    for word, function in module.VARIANTS.items():
        about = first_paragraph(inspect.getdoc(function))
        changed = changes(module.get_config(word), base)
        rows.append(
            (
                f"`{word}`",
                about or "One of the estimators.",
                changed or "nothing: the default",
            )
        )
    return rows


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for group in groups((ROOT / "configs" / "default.py").read_text()):
        title = f"`{group.name}`" if group.name else "The run"
        parts.append(f"\n## {title}\n\n")
        if group.meaning:
            parts.append(f"{sentence(group.meaning)}\n\n")
        parts.append(
            table(
                ("key", "default", "meaning"),
                [(f"`{k.name}`", f"`{k.default}`", k.meaning) for k in group.keys],
            )
        )

    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    default = importlib.import_module("configs.default")
    parts.append(VARIANTS)
    header = ("variant", "what it is for", "what it sets")
    parts.append(table(header, variant_rows(default)))
    for path in sorted((ROOT / "configs").glob("*.py")):
        if path.stem in ("default", "__init__"):
            continue
        module = importlib.import_module(f"configs.{path.stem}")
        parts.append(f"\n### [{path.name}](../configs/{path.name})\n\n")
        parts.append(f"{first_paragraph(module.__doc__)}\n\n")
        changed = changes(module.get_config(), default.get_config())
        parts.append(f"It sets {changed}.\n")
        parts += ["\n", table(header, variant_rows(module))]
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE.relative_to(ROOT)}")
