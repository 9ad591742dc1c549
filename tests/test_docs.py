"""What the documents say runs, and everything that runs is in them."""

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgestitch import cli as command_line

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs").glob("**/*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "calibrate/README.md", *PAGES]
by_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix()
)


def blocks(text: str, *languages: str) -> list[tuple[str, str]]:
    """Fenced blocks in these languages, in order, each with its language."""
    fenced = re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [(language, block) for language, block in fenced if language in languages]


def commands(text: str) -> list[list[str]]:
    """Command lines of edgestitch in blocks and in running text, as words without the program's."""
    fenced = "\n".join(block for _, block in blocks(text, "sh", "bash", "console", "yaml"))
    indented = "\n".join(re.findall(r"^ {4,}\S.*$", text, re.MULTILINE))
    starts = r"(?:^ *|bin/|&& |\$ |run: )"
    lines = re.findall(rf"{starts}edgestitch (.+)", f"{fenced}\n{indented}", re.MULTILINE)
    inline = re.findall(
        r"`edgestitch ([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    )
    found = [shlex.split(line, comments=True) for line in [*lines, *inline]]
    return [words for words in found if words and not words[0].isupper()]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Where the shipped network is compiled to on first use; once for all that use it here."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def fresh(tmp_path, cache, monkeypatch):
    """An empty current folder, as of a user who has just installed edgestitch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EDGESTITCH_DEPLOYMENT", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return tmp_path


def test_the_readmes_python_runs(fresh, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    assert re.match(r"[sml]:0:\d", printed[0])


@pytest.mark.slow
def test_the_example_project_runs(fresh):
    """As its user runs it, by the plugin's entry point."""
    project = shutil.copytree(ROOT / "docs/examples/latency-guard", fresh / "project")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--edgestitch-max-time",
        "5",
        "--benchmark-json=b.json",
    ]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed, 1 skipped" in done.stdout
    assert done.stdout.count("PASS  ") == 4
    stored = json.loads((project / "b.json").read_text())["benchmarks"]
    assert {one["extra_info"]["edgestitch"]["verdict"] for one in stored} == {"PASS"}


@pytest.mark.slow
def test_the_tutorial_runs_in_order(fresh):
    namespace: dict[str, object] = {}
    for language, block in blocks((ROOT / "docs/tutorial.md").read_text(), "python", "sh"):
        if language == "python":
            exec(compile(block, "tutorial.md", "exec"), namespace)
            continue
        for words in commands(f"```sh\n{block}```"):
            result = CliRunner().invoke(command_line.cli, words)
            assert result.exit_code == 0, (words, result.output)
    assert (fresh / "report.html").is_file()


@by_document
def test_every_import_in_a_document_resolves(document):
    """Of every block of Python; it compiles as well."""
    for _, block in blocks(document.read_text(), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgestitch"):
                module = import_module(node.module or "")
                assert all(hasattr(module, name.name) for name in node.names), block


@by_document
def test_every_program_in_a_document_exists(document):
    for module in re.findall(r"python -m (edgestitch[\w.]*)", document.read_text()):
        assert find_spec(module.rstrip(".")), module


@pytest.mark.parametrize("verb", sorted(command_line.cli.commands))
def test_the_readme_has_every_verb(verb):
    assert re.search(rf"^ +edgestitch {verb}\b", README, re.MULTILINE)


@by_document
def test_every_verb_and_option_in_a_document_exists(document):
    for verb, *words in commands(document.read_text()):
        options = {"--traceback", "--version", "--help"}
        if not verb.startswith("-"):
            assert verb in command_line.cli.commands
            parameters = command_line.cli.commands[verb].params
            options = {name for p in parameters for name in (*p.opts, *p.secondary_opts)} | {
                "--help"
            }
        given = {word.partition("=")[0] for word in (verb, *words) if word.startswith("--")}
        assert given <= options, (verb, given - options)


def test_a_document_with_an_option_that_is_none_is_found():
    """The check above reads blocks, indented lines and running text."""
    text = (
        "```sh\nedgestitch run --a  # b\n```\n\n    edgestitch run --c\n\nand `edgestitch run\n--d`"
    )
    assert commands(text) == [["run", "--a"], ["run", "--c"], ["run", "--d"]]


@pytest.mark.parametrize("target", ["demo", "test", "lint", "bench", "docs"])
def test_every_target_in_the_readme_is_in_the_makefile(target):
    assert f"make {target}" in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_links_in_the_documents_lead_somewhere():
    for document in ROOT.glob("**/*.md"):
        if any(part.startswith(".") for part in document.relative_to(ROOT).parts):
            continue  # environments and caches
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), (document, target)


def test_every_dependency_states_its_reason():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    start = lines.index("dependencies = [")
    for line in lines[start + 1 : lines.index("]", start)]:
        assert re.search(r'",\s+# \w', line), line


# --- the pages that Sphinx builds ------------------------------------------------------------------


@pytest.fixture
def generated(monkeypatch):
    """What the pages take from the package."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    pytest.importorskip("sphinx", reason="Sphinx comes with edgestitch[docs]")
    return import_module("generated")


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason="Sphinx comes with edgestitch[docs]")
    words = [
        "-W",
        "--keep-going",
        "-q",
        "-d",
        tmp_path / "doctrees",
        ROOT / "docs",
        tmp_path / "html",
    ]
    found = subprocess.run([sys.executable, "-m", "sphinx", *words], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    pages = {path.name for path in (tmp_path / "html").glob("*.html")}
    assert {path.with_suffix(".html").name for path in (ROOT / "docs").glob("*.md")} <= pages


def test_the_page_of_formats_has_every_artifact(generated):
    text = generated.formats()
    for source in (ROOT / "edgestitch").glob("**/*.py"):
        for kind in re.findall(r'^    kind: ClassVar\[str\] = "(.+)"', source.read_text(), re.M):
            assert f"## `{kind}`, version " in text, kind


def test_the_page_of_formats_has_every_kind_of_tensors():
    page = (ROOT / "docs/formats.md").read_text()
    for source in (ROOT / "edgestitch").glob("*.py"):
        names = set(re.findall(r"\bsave_tensors\((\w+),", source.read_text()))
        for name in names - {"kind"}:
            module = import_module(f"edgestitch.{source.stem}")
            assert f"| `{getattr(module, name)}` |" in page, (source.name, name)


def test_a_type_is_said_in_the_words_of_json(generated):
    from edgestitch.profile import Load

    assert generated._type(tuple[float, ...] | None) == "list of number or null"
    assert generated._type(dict[str, Load]) == "map from text to [Load](#format-profile-load)"


def test_every_page_of_results_is_on_the_site(generated):
    text = generated.results()
    for path in (ROOT / "bench/results").glob("*.md"):
        assert path.read_text().splitlines()[0] in text
    assert "](#results-compiled)" in generated._expand(
        "[a](../bench/results/compiled_intel-xeon-processor-2core_202611.md)"
    )


def test_every_page_is_reached_from_another():
    trees = {
        entry
        for page in PAGES
        for tree in re.findall(r"```{toctree}\n(.*?)```", page.read_text(), re.DOTALL)
        for entry in tree.split()
    }
    names = {page.relative_to(ROOT / "docs").with_suffix("").as_posix() for page in PAGES}
    assert {name for name in names if not name.startswith("examples/")} <= trees | {"index"}
