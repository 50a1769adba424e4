"""The documentation names everything: each setting with its default, each command with its options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic_core import PydanticUndefined

from bongsu.cli import app
from bongsu.settings import Setting, known_settings

DOCS = Path(__file__).parents[2] / "docs"


def row(setting: Setting) -> str:
    """The setting's row in docs/settings.md, as it has to be there."""
    return f"| `{setting.variable}` | {_default(setting)} | {setting.field.description} |"


def _default(setting: Setting) -> str:
    default: Any = setting.field.default
    if default is PydanticUndefined or default in (None, "", ()):
        return ""  # none, or made at start; the description says which
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default:.15g}s`" if isinstance(default, float) else f"`{default}`"


def documented() -> list[Setting]:
    """Channels without a namespace have the options of those with one, which are told once."""
    return [each for each in known_settings() if each.path[:2] != ("channels", "without_namespace")]


def test_every_setting_is_in_the_documentation_with_its_default_and_its_description() -> None:
    lines = (DOCS / "settings.md").read_text("utf-8").splitlines()
    missing = [row(setting) for setting in documented() if row(setting) not in lines]
    assert not missing, "add to docs/settings.md:\n" + "\n".join(missing)


def test_the_documentation_names_no_setting_that_does_not_exist() -> None:
    known = {setting.variable for setting in documented()}
    lines = (DOCS / "settings.md").read_text("utf-8").splitlines()
    named = [line.split("`")[1] for line in lines if line.startswith("| `BONGSU_")]
    assert [name for name in named if name not in known] == []


COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # it is a group


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_in_the_documentation_with_all_its_options(name: str) -> None:
    text = (DOCS / "commands.md").read_text("utf-8")
    heading = f"## bongsu {name}\n"
    assert heading in text
    section = text.split(heading)[1].split("\n## ")[0]
    options = [option for parameter in COMMANDS[name].params for option in parameter.opts if option[0] == "-"]
    assert [option for option in options if f"`{option}" not in section and option != "--help"] == []
