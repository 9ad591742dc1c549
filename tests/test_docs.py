"""What the documents say runs, and everything that runs is in them."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgestitch import cli as command_line

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EDGESTITCH_DEPLOYMENT", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    assert re.match(r"[sml]:0:\d", printed[0])


@pytest.mark.parametrize("verb", sorted(command_line.cli.commands))
def test_the_readme_has_every_verb(verb):
    assert re.search(rf"^ +edgestitch {verb}\b", README, re.MULTILINE)


def test_every_option_in_the_readme_exists():
    for line in re.findall(r"^ +edgestitch (.+?)(?:\s+#.*)?$", README, re.MULTILINE):
        verb, *words = line.split()
        shown = CliRunner().invoke(command_line.cli, [verb, "--help"]).output
        assert all(word in shown for word in words if word.startswith("--")), line


@pytest.mark.parametrize("target", ["demo", "test", "lint", "bench"])
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
