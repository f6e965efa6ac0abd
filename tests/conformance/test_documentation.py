"""Every hook has a page with an example that runs and a table of its options, every writer a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from hookbus.hooks import EMAHook, Hook
from hookbus.registry import HOOKS, WRITERS
from tests.conformance.subjects import HOOK_NAMES, WRITER_NAMES
from tests.examples.generated import DOCS, brought_up_to_date, options_of, options_table, page_name
from tests.examples.test_pages import runnable_blocks

SECTIONS = ("## Options", "## Pitfalls")


def faults(hook: type[Hook], directory: Path = DOCS / "hooks") -> list[str]:
    """Return what is missing about a hook."""
    page = directory / page_name(hook)
    if not page.is_file():
        return [f"there is no {page.name}"]
    text = page.read_text(encoding="utf-8")
    missing = [f"{page.name} has no {section}" for section in SECTIONS if section not in text]
    if options_of(text) != [hook.__name__]:
        missing.append(f"{page.name} shows the options of {options_of(text)}")
    if not any("Runner(" in block.code for block in runnable_blocks(text)):
        missing.append(f"{page.name} has no example that runs")
    return missing


@pytest.mark.parametrize("name", HOOK_NAMES)
def test_a_hook_has_a_page(name: str) -> None:
    """With an example, its options and its pitfalls."""
    assert faults(HOOKS.get(name)) == []


def test_every_writer_has_a_table_of_its_options() -> None:
    """All of them on one page."""
    shown = options_of((DOCS / "writers.md").read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(WRITERS.get(name).__name__ for name in WRITER_NAMES)


def test_a_hook_without_a_page_is_reported(tmp_path: Path) -> None:
    """Before anybody looks for it in vain."""
    assert faults(EMAHook, tmp_path) == ["there is no ema.md"]


def test_what_a_page_lacks_is_reported(tmp_path: Path) -> None:
    """A section, the table and the example."""
    (tmp_path / "ema.md").write_text("## Options\n\n```python no-run\nRunner()\n```\n", encoding="utf-8")
    lacking = ["has no ## Pitfalls", "shows the options of []", "has no example that runs"]
    assert faults(EMAHook, tmp_path) == [f"ema.md {each}" for each in lacking]


def test_a_stale_table_of_options_is_brought_up_to_date() -> None:
    """What stands between the two comments is replaced, also where it is another table."""
    page = "<!-- options of EMAHook -->\n{}<!-- end -->\n"
    current = page.format(options_table("EMAHook") + "\n")
    assert "| `**averager_options` |" in current
    assert [brought_up_to_date(page.format(stale)) for stale in ("", "| option |\n")] == [current, current]


def test_an_option_that_nobody_describes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its docstring has to say what it means before the table can."""
    monkeypatch.setattr(EMAHook, "__doc__", "Averages.\n\nArgs:\n    ema_type: how.\n")
    with pytest.raises(KeyError, match="strict_load"):
        options_table("EMAHook")
