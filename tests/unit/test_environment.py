"""The commit that a run notes is that of the checkout which the package is used from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

import saltus.recipes.environment as module
from saltus.recipes.environment import environment


@pytest.mark.parametrize("name", ["checkout", "a folder with blanks", "\u00fcber"])
@pytest.mark.parametrize("inside", ["src", "site-packages"])
def test_the_commit_of_a_checkout_in_a_folder_of_any_name(
    name: str, inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = tmp_path / name
    file = top / inside / "saltus" / "recipes" / "environment.py"
    file.parent.mkdir(parents=True)
    file.write_text("")

    def git(*args: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        done = subprocess.run(["git", *who, *args], cwd=top, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "one")
    monkeypatch.setattr(module, "__file__", str(file))
    here = torch.device("cpu")
    ours = inside == "src"  # anywhere else it is installed below somebody else's checkout
    assert environment(here, 1).get("commit") == (git("rev-parse", "HEAD") if ours else None)
    file.write_text("changed")
    assert environment(here, 1).get("commit") == (git("rev-parse", "HEAD") + "+" if ours else None)
