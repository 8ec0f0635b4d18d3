"""The ```python blocks of README.md and docs/ run, top to bottom, one namespace per file."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def python_source(text: str) -> str:
    """The python blocks of a page, everything else blanked, so that line numbers stay true."""
    lines, inside = [], False
    for line in text.splitlines():
        fence = re.match(r"\s*```(\w*)\s*$", line)
        if fence and not inside:
            inside = fence[1] or "text"
            lines.append("")
        elif fence:
            inside = False
            lines.append("")
        else:
            lines.append(line if inside == "python" else "")
    assert not inside, "a code block is not closed"
    return "\n".join(lines) + "\n"


def with_python():
    sources = {path: python_source(path.read_text()) for path in FILES}
    return [
        pytest.param(path, source, id=path.name)
        for path, source in sources.items()
        if source.strip()
    ]


@pytest.mark.parametrize(("path", "source"), with_python())
def test_examples_parse_and_use_public_names_only(path, source):
    for node in ast.walk(ast.parse(source, str(path))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            private = [name for name in names if "._" in name or name.startswith("_")]
            assert not private, f"{path.name}:{node.lineno} imports {private}"


@pytest.mark.slow
@pytest.mark.parametrize(("path", "source"), with_python())
def test_examples_run(path, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(source, str(path), "exec"), {"__name__": "__main__"})


def test_the_pages_show_the_results_files():
    spec = importlib.util.spec_from_file_location("make_results", ROOT / "docs/make_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.missing() == []
    for path in module.PAGES:
        page = path.read_text()
        assert module.fill(page) == page, f"{path.name}: run python docs/make_results.py"


def test_blocks_are_found_and_keep_their_lines():
    page = "text\n```python\nx = 1\n```\n```bash\nls\n```\n```\nno\n```\n```python\n1 / 0\n```\n"
    namespace = {}
    with pytest.raises(ZeroDivisionError) as info:
        exec(compile(python_source(page), "page.md", "exec"), namespace)
    assert namespace["x"] == 1
    assert info.traceback[-1].lineno + 1 == page.splitlines().index("1 / 0") + 1
