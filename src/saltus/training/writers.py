"""Where else a run's figures and pictures go: TensorBoard's event files, and Weights & Biases.

Both are copies for other programs. What a run itself relies on is ``metrics.jsonl`` and
``evaluations.jsonl``, so a writer that fails is dropped with one line and training goes on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

__all__ = ["TensorBoard", "WeightsAndBiases", "Writer", "Writers", "check_tensorboard", "check_wandb"]


class Writer(Protocol):
    """Takes what a run measures. Steps count those that are done, and do not fall."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name; a slash in a name separates a group from its member."""
        ...

    def images(self, step: int, pictures: Mapping[str, Path]) -> None:
        """PNG files by name."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


def check_tensorboard() -> None:
    """Raise a ValueError that says how to install it, before anything is trained."""
    try:
        import tensorboard.summary.writer.record_writer  # noqa: F401
    except ImportError as missing:
        raise ValueError(
            "--tensorboard: expected the package tensorboard, which is not installed; "
            "pip install 'saltus[tensorboard]'"
        ) from missing


def check_wandb() -> None:
    """Raise a ValueError that says how to install it, before anything is trained."""
    try:
        import wandb  # noqa: F401
    except ImportError as missing:
        raise ValueError(
            "--wandb: expected the package wandb, which is not installed; pip install 'saltus[wandb]'"
        ) from missing


class TensorBoard:
    """Event files in ``FOLDER/tensorboard``, for ``tensorboard --logdir runs``.

    The records are made with TensorBoard's own protocol buffers and record writer, which need no
    TensorFlow. Each call is on its way to the disk when it returns, so a killed process loses none. A run
    that goes on opens another file: it begins with the mark by which TensorBoard hides what earlier files
    hold of later steps. Numbers are float32, as TensorBoard's are.

    Args:
        folder: of the run.
        start: steps that were done when this part of the run began.

    Raises:
        ValueError: if TensorBoard is not installed, or the file cannot be made.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        check_tensorboard()
        from tensorboard.summary.writer.record_writer import RecordWriter

        where = folder / "tensorboard"
        try:
            where.mkdir(exist_ok=True)
            # Readers take files in the order of their names, so a clock that was set back must not matter.
            earlier = sorted(where.glob("events.out.tfevents.*"))
            path = where / f"events.out.tfevents.{len(earlier):06d}"
            self._file = path.open("xb")
        except OSError as wrong:
            raise ValueError(f"{where}: expected to write here, got {wrong.strerror or wrong}") from wrong
        self._records = RecordWriter(self._file)
        self._add(0, file_version="brain.Event:2")
        if earlier:
            from tensorboard.compat.proto.event_pb2 import SessionLog

            self._add(start + 1, session_log=SessionLog(status=SessionLog.START))

    def _add(self, step: int, **content: Any) -> None:  # noqa: ANN401 - one field of an Event
        from tensorboard.compat.proto.event_pb2 import Event

        event: Event = Event(wall_time=time.time(), step=step, **content)
        self._records.write(event.SerializeToString())
        self._records.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """All of them in one event."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        found = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step, summary=Summary(value=found))

    def images(self, step: int, pictures: Mapping[str, Path]) -> None:
        """The files as they are."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        found = []
        for name, path in pictures.items():
            with Image.open(path) as picture:
                wide, high = picture.size
            shown = Summary.Image(
                height=high, width=wide, colorspace=3, encoded_image_string=path.read_bytes()
            )
            found.append(Summary.Value(tag=name, image=shown))
        self._add(step, summary=Summary(value=found))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class WeightsAndBiases:
    """A run of Weights & Biases.

    Nothing about accounts is decided here: ``wandb login`` does that, and the environment says where data
    go. With ``WANDB_MODE=offline`` nothing leaves the machine: figures gather in ``FOLDER/wandb``, and
    ``wandb sync FOLDER/wandb/offline-run-*`` sends them later; ``WANDB_MODE=disabled`` drops them.

    The identity of the run is kept in ``FOLDER/wandb.id``, by which a resumed run goes on in the same one.
    The steps are the run's own, an axis named ``step``, not the count of calls. Weights & Biases takes
    nothing back: steps that were repeated after a resumption appear twice, with the same values.

    Args:
        folder: of the run.
        project: that the run belongs to.
        name: of the run.
        options: shown beside it.

    Raises:
        ValueError: if wandb is not installed, or does not begin a run.
    """

    def __init__(self, folder: Path, project: str, name: str, options: Mapping[str, object]) -> None:
        check_wandb()
        import wandb

        kept = folder / "wandb.id"
        known = kept.read_text(encoding="utf-8").strip() if kept.is_file() else None
        self._image = wandb.Image
        try:
            self._run = wandb.init(
                project=project, name=name, id=known, resume="allow", dir=str(folder), config=dict(options)
            )
        except Exception as wrong:
            raise ValueError(
                f"--wandb: expected to begin a run of project {project}, got {_line(wrong)}; wandb login, or "
                "WANDB_MODE=offline to keep everything here"
            ) from wrong
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        if known is None:
            kept.write_text(f"{self._run.id}\n", encoding="utf-8")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """All of them in one row."""
        self._run.log({"step": step, **values})

    def images(self, step: int, pictures: Mapping[str, Path]) -> None:
        """The files as they are."""
        self._run.log({"step": step} | {name: self._image(str(path)) for name, path in pictures.items()})

    def close(self) -> None:
        """Wait until everything is written or sent."""
        self._run.finish()


class Writers:
    """Several writers as one. One that fails is named on standard error and gets nothing more.

    >>> with Writers([]) as none:
    ...     none.scalars(1, {"loss": 0.5})
    """

    def __init__(self, writers: Sequence[Writer]) -> None:
        self._writers = list(writers)

    def __enter__(self) -> Writers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """To each of them."""
        for writer in list(self._writers):
            try:
                writer.scalars(step, values)
            except Exception as wrong:
                self._drop(writer, wrong)

    def images(self, step: int, pictures: Mapping[str, Path]) -> None:
        """To each of them."""
        for writer in list(self._writers):
            try:
                writer.images(step, pictures)
            except Exception as wrong:
                self._drop(writer, wrong)

    def close(self) -> None:
        """Each of them, once."""
        for writer in list(self._writers):
            try:
                writer.close()
            except Exception as wrong:
                self._drop(writer, wrong)
        self._writers.clear()

    def _drop(self, writer: Writer, wrong: Exception) -> None:
        self._writers.remove(writer)
        print(
            f"saltus: warning: {type(writer).__name__} gets nothing more: {_line(wrong)}; "
            "the run goes on, and its own files hold everything",
            file=sys.stderr,
        )


def _line(wrong: Exception) -> str:
    """A fault in one line."""
    return f"{type(wrong).__name__}: {' '.join(str(wrong).split())[:200]}"
