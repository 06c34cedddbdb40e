"""``saltus report``: a run, finished or not, as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro import conf

from saltus.page import write_page

__all__ = ["report"]


def report(run: conf.Positional[Annotated[Path, conf.arg(metavar="RUN")]]) -> None:
    """Draw a run, finished or not, as one page that needs nothing else: report.html in its folder.

    A run draws its page by itself while it trains; this draws it again, with what has been added since.

    examples:
      saltus report runs/digits-lsd

    Args:
        run: Run folder.
    """
    print(f"page     {write_page(run)}")
