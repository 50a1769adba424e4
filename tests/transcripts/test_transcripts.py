"""Whole conversations, frame by frame, against codec and session."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.transcripts.runner import HERE, Player, steps

TRANSCRIPTS = sorted(HERE.glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_the_conversation_goes_as_written(path: Path) -> None:
    player = Player()
    for number, happens, expected in steps(path):
        assert player.play(happens) == expected, f"{path.name}, line {number}: {happens}"
