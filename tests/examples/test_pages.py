"""The README and the pages of the documentation are true: their code runs, their tables are current, their links lead somewhere.

Every block that begins with three backticks and `python` is run, unless `no-run` follows. The blocks of one page share
a namespace, in the order in which they stand there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.examples.generated import PARTS, brought_up_to_date, parts_of

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))

_BLOCK = re.compile(r"^```python(?P<mark>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?P<target>[^)#\s]+)[^)]*\)|\b(?:src|href)=\"(?P<attribute>[^\"#]+)\"")


class Block(NamedTuple):
    """One block of Python code of a page, and the line in which it begins."""

    line: int
    code: str


def runnable_blocks(text: str) -> Iterator[Block]:
    """Yield the blocks of a page that are to be run."""
    for match in _BLOCK.finditer(text):
        mark = match["mark"].strip()
        if mark not in ("", "no-run"):
            msg = f"a block of Python is run, or marked 'no-run'; it cannot be {mark!r}"
            raise ValueError(msg)
        if not mark:
            yield Block(text.count("\n", 0, match.start("code")), match["code"])


def run_page(path: Path) -> dict[str, Any]:
    """Run the blocks of a page and return their common namespace."""
    namespace: dict[str, Any] = {"__name__": f"page_{path.stem}"}
    for block in runnable_blocks(path.read_text(encoding="utf-8")):
        exec(compile("\n" * block.line + block.code, str(path), "exec", dont_inherit=True), namespace)
    return namespace


def dead_links(path: Path) -> list[str]:
    """Return the targets of links to files that are not there."""
    targets = [match["target"] or match["attribute"] for match in _LINK.finditer(path.read_text(encoding="utf-8"))]
    return [target for target in targets if "://" not in target and not (path.parent / target).exists()]


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """Let torch use one thread; the models of the pages are too small for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run one after another, in any directory."""
    monkeypatch.chdir(tmp_path)

    run_page(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_generated_parts_of_a_page_are_current(page: Path) -> None:
    """What a page takes from the code is what the code says; `python -m tests.examples.generated` repairs it."""
    text = page.read_text(encoding="utf-8")

    assert text == brought_up_to_date(text)


def test_every_generated_part_has_its_page() -> None:
    """No table is made for nothing, and none stands in two places."""
    assert sorted(name for page in PAGES for name in parts_of(page.read_text(encoding="utf-8"))) == sorted(PARTS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_to_files(page: Path) -> None:
    """Each link that does not leave the repository names a file or folder that exists."""
    assert dead_links(page) == []


def test_blocks_share_a_namespace_and_may_be_left_out(tmp_path: Path) -> None:
    """A later block sees the names of an earlier one; a block marked `no-run`, or of another language, is not run."""
    page = make_page(
        tmp_path, "```python\nx = 1\n```\n\n```python no-run\nx = 2\n```\n\n```text\nx = 3\n```\n\n```python\ny = x + 1\n```\n"
    )

    assert run_page(page)["y"] == 2


def test_a_block_that_fails_is_reported_with_its_place(tmp_path: Path) -> None:
    """The error comes as itself, and its traceback names page and line."""
    page = make_page(tmp_path, "Some words.\n\n```python\nx = 1\nx / 0\n```\n")

    with pytest.raises(ZeroDivisionError) as raised:
        run_page(page)

    assert (str(raised.traceback[-1].path), raised.traceback[-1].lineno + 1) == (str(page), 5)


def test_a_misspelt_mark_is_refused(tmp_path: Path) -> None:
    """A block that is neither plain nor `no-run` is an error, so that nothing is left out by mistake."""
    with pytest.raises(ValueError, match="'norun'"):
        run_page(make_page(tmp_path, "```python norun\n```\n"))


def test_a_stale_table_is_brought_up_to_date() -> None:
    """What stands between the two comments is replaced, and nothing else."""
    page = "Before.\n\n<!-- generated: priorities -->\n{}<!-- end of priorities -->\n\nAfter.\n"
    current = page.format(PARTS["priorities"]() + "\n")

    assert [brought_up_to_date(page.format(stale)) for stale in ("", "old\n")] == [current, current]


def test_a_dead_link_is_reported(tmp_path: Path) -> None:
    """Links in Markdown and in HTML count, those to other sites and to headings do not."""
    page = make_page(tmp_path, '[a](page.md#top) [b](gone.md) [c](https://example.org/x) [d](#top) <img src="gone.svg">\n')

    assert dead_links(page) == ["gone.md", "gone.svg"]


def make_page(directory: Path, text: str) -> Path:
    """Write a page and return its path."""
    path = directory / "page.md"
    path.write_text(text, encoding="utf-8")
    return path
