"""Commands as systemd's Exec lines read them."""

from __future__ import annotations

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils import units


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["/bin/x", "--port", "1"], "/bin/x --port 1"),
        (["/bin/x", "two words"], '/bin/x "two words"'),
        (["/bin/x", "50%", "$HOME"], '/bin/x 50%% "$$HOME"'),
        (["/bin/x", 'say "hi"', "back\\slash"], '/bin/x "say \\"hi\\"" "back\\\\slash"'),
        (["/bin/x", ""], '/bin/x ""'),
        (["/bin/x", ";", "a|b"], '/bin/x ";" "a|b"'),
    ],
)
def test_every_word_is_taken_literally(words: list[str], line: str) -> None:
    assert units.exec_line(words) == line


def test_a_command_that_is_not_there_says_nothing() -> None:
    assert units.run(["/nonexistent/program"]) == ""
    assert units.run(["printf", "x"]) == "x"
