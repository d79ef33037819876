"""What there is to choose from is listed from the registries themselves."""

import pytest

import agents
import train
from agents.checks.extras import EXTRAS
from agents.encoders import ENCODERS
from agents.memory import MEMORIES
from agents.runs.listing import choice_lines
from configs.command_line import files
from envs.vector.families import FAMILIES


@pytest.mark.parametrize("width", [80, 120])
def test_everything_that_has_a_name_is_listed_within_the_terminal(width: int) -> None:
    lines = list(choice_lines(width))
    names = {line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "}
    assert names >= {*files(), *MEMORIES, *ENCODERS, *(family.name for family in FAMILIES), *EXTRAS}
    # A command to type is not broken.
    assert max(len(line) for line in lines if "pip install" not in line) <= width


def test_the_command_line_lists_and_names_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"recurl {agents.__version__}, Python 3.")
    assert train.main(["--list"]) == 0
    assert "memories, --policy.memory NAME" in capsys.readouterr().out
