"""What the pages take from the package and from other folders when they are built.

A Sphinx extension, listed in conf.py.

A line `<!-- formats -->`, `<!-- toml -->`, `<!-- results -->` or `<!-- file PATH -->` stands for it,
so that it cannot be older than what it is about.
"""

import inspect
import re
import types
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.pycode import ModuleAnalyzer

import edgestitch
from edgestitch.artifact import Artifact

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench/results"

_PAGES = {"bench/README": "benches", "calibrate/README": "recipes", "CHANGELOG": "changelog"}
"""Documents of other folders that are pages here."""
_WORDS = {str: "text", float: "number", int: "whole number", bool: "true or false"}


# --- artifacts ---------------------------------------------------------------------------------


def artifacts() -> list[type[Artifact]]:
    """Every kind of artifact in the package, by name."""
    for module in walk_packages(edgestitch.__path__, "edgestitch."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    found = [kind for kind in _subclasses(Artifact) if kind.__module__.startswith("edgestitch.")]
    return sorted(found, key=lambda kind: kind.kind)


def _subclasses(kind: type[Artifact]) -> Iterator[type[Artifact]]:
    for each in kind.__subclasses__():
        yield each
        yield from _subclasses(each)


def formats() -> str:
    """A section for each kind of artifact, then one for each value inside of them."""
    kinds = artifacts()
    parts = [
        f"({_target(kind)})=\n## `{kind.kind}`, version {kind.version}\n\n{_described(kind)}"
        for kind in kinds
    ]
    parts.append("## Values inside\n\nIn alphabetical order; several kinds share some of them.")
    parts += _values(kinds)
    return "\n\n".join(parts)


def toml() -> str:
    """A section for each kind of TOML file, by what reads it."""
    from edgestitch.coschedule import _StreamFile
    from edgestitch.device import Descriptor
    from edgestitch.recipe import Recipe

    files = {
        "A recipe": Recipe,
        "A device": Descriptor,
        "A table of `streams.toml`": _StreamFile,
    }
    known = set(_inside(artifacts()))
    parts = [f"### {title}\n\n{_described(kind)}" for title, kind in files.items()]
    parts += _values(list(files.values()), known)
    return "\n\n".join(parts)


def _values(kinds: list[Any], known: set[type] | None = None) -> list[str]:
    inside = sorted(set(_inside(kinds)) - set(kinds) - (known or set()), key=lambda k: k.__name__)
    return [f"({_target(kind)})=\n### {kind.__name__}\n\n{_described(kind)}" for kind in inside]


def _inside(kinds: list[Any]) -> Iterator[type]:
    """The structures in the fields of these, and in theirs, each at least once."""
    seen: set[type] = set()
    waiting = list(kinds)
    while waiting:
        kind = waiting.pop()
        for hint in _hints(kind).values():
            for each in _leaves(hint):
                if inspect.isclass(each) and issubclass(each, msgspec.Struct) and each not in seen:
                    seen.add(each)
                    waiting.append(each)
    yield from seen


def _leaves(hint: Any) -> Iterator[Any]:
    if get_origin(hint) is Literal or not get_args(hint):
        yield hint
    else:
        for part in get_args(hint):
            yield from _leaves(part)


def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field: hints[field] for field in kind.__struct_fields__}


def _described(kind: Any) -> str:
    """The first paragraph of its docstring, and a table of its fields."""
    said = inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0]
    notes = _notes(kind)
    rows = [
        f"| `{field.encode_name}` | {_type(hint)} | {_default(field)} | {notes.get(field.name, '')} |"
        for field, hint in zip(msgspec.structs.fields(kind), _hints(kind).values(), strict=True)
    ]
    table = ["| field | value | if left out | meaning |", "| --- | --- | --- | --- |", *rows]
    return "\n\n".join([" ".join(said.split()), "\n".join(table)])


def _notes(kind: Any) -> dict[str, str]:
    """What the source says below each field, of the class and of those that it is made from."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if each.__module__.startswith("edgestitch."):
            documented = ModuleAnalyzer.for_module(each.__module__).find_attr_docs()
            found |= {
                name: " ".join(" ".join(lines).split())
                .replace("|", "\\|")
                .replace("`None`", "`null`")
                for (owner, name), lines in documented.items()
                if owner == each.__qualname__
            }
    return found


def _default(field: Any) -> str:
    if field.required:
        return "required"
    value = field.default
    if value is msgspec.NODEFAULT:
        value = field.default_factory()
    if isinstance(value, msgspec.Struct):
        return "the defaults of its fields"
    return f"`{msgspec.json.encode(value).decode()}`"


def _type(hint: Any) -> str:
    """A type as the JSON or TOML file has it, in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint is type(None):
        return "null"
    if origin is Annotated:
        return _type(parts[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(part) for part in parts)
    if origin is tuple and parts[-1] is not ...:
        return f"list of {len(parts)}: {', '.join(_type(part) for part in parts)}"
    if origin in (tuple, list):
        return f"list of {_type(parts[0])}"
    if origin is dict:
        return f"map from {_type(parts[0])} to {_type(parts[1])}"
    if inspect.isclass(hint) and issubclass(hint, msgspec.Struct):
        return f"[{hint.__name__}](#{_target(hint)})"
    return _WORDS.get(hint, f"`{getattr(hint, '__name__', hint)}`")


def _target(kind: Any) -> str:
    return f"format-{kind.__module__.removeprefix('edgestitch.')}-{kind.__name__}".lower()


# --- documents of other folders ------------------------------------------------------------------


def results() -> str:
    """All pages of `bench/results`, one after the other."""
    return "\n\n".join(_result(path) for path in sorted(RESULTS.glob("*.md")))


def _result(path: Path) -> str:
    text = re.sub(r"\]\((?!\w+:|#)", "](../bench/results/", path.read_text())
    return f"(results-{_measured(path.name)})=\n" + re.sub(r"^#", "##", text, flags=re.MULTILINE)


def _measured(name: str) -> str:
    """What a page of `bench/results` is about, of its file's name: `compiled`."""
    return name.split("_intel")[0].removesuffix(".md").replace("_", "-").lower()


def included(path: str) -> str:
    """A document of another folder, its links as seen from here."""
    folder = Path(path).parent
    text = (Path(__file__).parent / path).read_text()
    return re.sub(r"\]\((?!\w+:|#)", f"]({folder.as_posix()}/", text)


def _expand(text: str) -> str:
    parts: dict[str, Callable[[], str]] = {"formats": formats, "toml": toml, "results": results}
    for name, made in parts.items():
        if f"<!-- {name} -->" in text:
            text = text.replace(f"<!-- {name} -->", made())
    text = re.sub(r"^<!-- file (\S+) -->$", lambda m: included(m[1]), text, flags=re.MULTILINE)
    return re.sub(r"\]\(((?:\.\./|[\w-]+/\.\./)[^)#]+\.md)\)", _link, text)


def _link(match: re.Match[str]) -> str:
    """A link to a document of another folder, to where it is on these pages; else as it is."""
    target = (Path(__file__).parent / match[1]).resolve()
    if target.parent == RESULTS:
        return f"](#results-{_measured(target.name)})"
    page = _PAGES.get(target.relative_to(ROOT).with_suffix("").as_posix())
    return f"]({page}.md)" if page else match[0]


# --- docstrings --------------------------------------------------------------------------------

_PLAIN = ("attribute", "data", "property")


def docstring(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Google's style, and drawings as they are, as reStructuredText.

    Not napoleon's own handler, to which a sentence about an attribute is its type up to a colon.
    """
    paragraphs = "\n".join(lines).split("\n\n")
    text = "\n\n".join(map(_literal if what == "module" else _quoted, paragraphs))
    lines[:] = text.split("\n")
    if what not in _PLAIN:
        lines[:] = GoogleDocstring(lines, Config(), app, what, name, obj).lines()


def _literal(paragraph: str) -> str:
    """A table or a drawing as a literal block; text as it is."""
    drawn = re.search(r"\S {3,}\S|^ {2,}\S", paragraph, re.MULTILINE)
    return _block(paragraph) if drawn else paragraph


def _quoted(paragraph: str) -> str:
    """A paragraph that is indented as a whole as a literal block."""
    indented = all(line.startswith("    ") for line in paragraph.split("\n"))
    return _block(paragraph) if indented else paragraph


def _block(paragraph: str) -> str:
    return "::\n\n" + "\n".join(f"    {line}" for line in paragraph.split("\n"))


def setup(app: Sphinx) -> dict[str, bool]:
    def read(app: Sphinx, name: str, content: list[str]) -> None:
        content[0] = _expand(content[0])

    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", docstring)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
