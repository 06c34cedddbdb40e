"""The texts that a student learns: a file of lines, encoded once, and kept in the run folder.

    prompts.safetensors       tokens [P, L, D], mask [P, L], pooled [P, E]; the texts are in its header

The labels 0, 1, ... of a student of texts are the numbers of its prompts.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from saltus.recipes.folder import whole
from saltus.typing import Condition

__all__ = ["PROMPTS", "Prompts"]

PROMPTS = "prompts.safetensors"
MOST = 100_000
_FIELDS = ("tokens", "mask", "pooled")
_ENCODERS = ("text_encoder*", "tokenizer*")


@dataclass(frozen=True, eq=False)
class Prompts:
    """Texts and their embeddings.

    Attributes:
        texts: the prompts, P.
        cond: their embeddings, on the CPU, P rows.
        digest: of the texts and of who encoded them.
    """

    texts: tuple[str, ...]
    cond: Condition
    digest: str

    @classmethod
    def read(cls, file: Path, teacher: Path, kept: Path | None = None) -> Prompts:
        """The prompts of a text file, encoded by the pipeline in ``teacher``, or as a run in the folder
        ``kept`` has them already.

        Raises:
            ValueError: for a file that is missing, empty or no text.
        """
        before = None if kept is None else cls.load(kept)
        if before is not None and not file.exists():  # the run keeps what it needs
            return before
        texts = _lines(file)
        digest = _digest(texts, teacher)
        if before is not None and before.digest == digest:
            return before
        from saltus.teachers.diffusers.plain import prompts_of

        return cls(texts, prompts_of(teacher, texts), digest)

    def save(self, folder: Path) -> None:
        """Write them into a run's folder, unless they are there."""
        before = self.load(folder)
        if before is not None and before.digest == self.digest:
            return
        tensors = {n: vars(self.cond)[n].contiguous() for n in _FIELDS if vars(self.cond)[n] is not None}
        with whole(folder / PROMPTS) as draft:
            draft.write_bytes(save(tensors, {"texts": json.dumps(self.texts), "digest": self.digest}))

    @classmethod
    def load(cls, folder: Path) -> Prompts | None:
        """Those of a run's folder, None if it has none.

        Raises:
            ValueError: for a damaged file.
        """
        path = folder / PROMPTS
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                said = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            texts, digest = tuple(json.loads(said["texts"])), said["digest"]
            odd = tensors.keys() - set(_FIELDS) or any(len(v) != len(texts) for v in tensors.values())
            if not texts or odd:
                raise ValueError("other rows than texts")
            return cls(texts, Condition(**tensors), digest)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as wrong:
            raise ValueError(
                f"{path}: expected the prompts of a run, got {type(wrong).__name__}: {wrong}; the file is "
                "damaged: remove it, and they are encoded again"
            ) from None


def _lines(file: Path) -> tuple[str, ...]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as wrong:
        why = wrong.strerror if isinstance(wrong, OSError) else "no UTF-8"
        raise ValueError(f"prompts {file}: expected a text file, one prompt a line, got {why}") from None
    texts = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not 0 < len(texts) <= MOST:
        raise ValueError(
            f"prompts {file}: expected 1 to {MOST:,} lines of text, got {len(texts):,}; one prompt a line"
        )
    return texts


def _digest(texts: tuple[str, ...], teacher: Path) -> str:
    """Of the texts, and of the configurations and sizes of the encoders: their weights are too large to be
    read for this."""
    seen = hashlib.sha256(json.dumps(texts).encode())
    for pattern in _ENCODERS:
        for folder in sorted(teacher.glob(pattern)):
            for path in sorted(folder.iterdir()):
                content = path.read_bytes() if path.suffix in (".json", ".txt") else b""
                seen.update(f"{folder.name}/{path.name} {path.stat().st_size}".encode() + content)
    return seen.hexdigest()[:16]
