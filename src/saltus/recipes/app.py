"""``saltus app``: a page on this machine that draws samples of a run at several numbers of steps.

The page asks nobody else for anything: its fonts are the browser's, and Gradio reports no use. This is the
one place that knows Gradio.
"""

from __future__ import annotations

import base64
import errno
import html
import io
import logging
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro import conf

from saltus.recipes.averages import Choice
from saltus.recipes.decoded import decoder_of
from saltus.recipes.easel import Easel, Panel
from saltus.recipes.evaluate import STEPS
from saltus.recipes.finished import RunPath
from saltus.recipes.machine import device_of
from saltus.recipes.opened import open_run
from saltus.recipes.prompts import Prompts
from saltus.recipes.show import said
from saltus.recipes.wishes import Wish
from saltus.teachers.diffusers.student import DiffusersBackbone

__all__ = ["answering", "app", "easel_of", "served"]

HOST = "127.0.0.1"
PORTS = range(7860, 7960)
LISTED = 2000
"""So many classes or prompts are listed to choose from."""
IN_TURN = -1
"""What the page sends for: one class after another."""
PICTURES, LARGE, POINTS = (64, 16), (16, 4), (20_000, 2_000)
"""Most samples, and how many at first."""
STRONGEST = 10.0
"""The end of the slider for a map that does not say which strengths of guidance it learned."""
PLAIN = "The autoencoder was not found: latents are shown as they are. --autoencoder DIR names it."
MOST = 600
"""Characters of a message."""
STYLE = """
.panels { display: flex; flex-wrap: wrap; gap: 18px; align-items: flex-start; }
.panels figure { margin: 0; max-width: 100%; }
.panels figcaption { display: flex; gap: 16px; justify-content: space-between; margin: 0 0 6px; }
.panels figcaption b { font-weight: 600; }
.panels img { margin: 0; max-width: 100%; max-height: 80vh; border-radius: 4px; background: white; }
.note { margin: 14px 0 0; opacity: .75; }
.wrong { margin: 0 0 14px; padding: 10px 14px; border-left: 4px solid #d1495b; background: #d1495b1f; }
"""


def app(
    run: conf.Positional[RunPath],
    *,
    port: int | None = None,
    host: str = HOST,
    browser: bool = True,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    autoencoder: Annotated[Path | None, conf.arg(metavar="DIR")] = None,
    weights: Choice = Choice(),
) -> None:
    """Look at samples of a run on a page in the browser, at several numbers of steps from the same noise.

    Of a run that still trains or was stopped they are those that it has saved last. Ctrl-C ends it.

    examples:
      saltus app runs/digits-lsd
      saltus app runs/digits-lsd --port 8000 --no-browser
      saltus app runs/latents-lsd --autoencoder vae

    Args:
        run: Run folder, or a weights file.
        port: Of the page; None takes the first free one from 7860 on.
        host: Who can see the page: 127.0.0.1 is this machine alone, 0.0.0.0 everybody in its network.
        browser: Open the page in a browser; --no-browser says where it is, and no more.
        device: Where to compute; auto: CUDA where it is.
        autoencoder: What decodes latents; by default that of the run.
        weights: Which of the weights that the run kept.
    """
    easel = easel_of(run, device, autoencoder, weights)
    with served(easel, host, port) as address:
        print(f"{easel.done.name} is at {address}; Ctrl-C ends it", flush=True)
        ended = threading.Event()
        try:
            if browser:
                webbrowser.open(address)
            while not ended.wait(1.0):
                pass
        except KeyboardInterrupt:  # how a page is meant to end
            print()


def easel_of(run: Path, device: str, autoencoder: Path | None, weights: Choice) -> Easel:
    """The run, opened on a device.

    Raises:
        ValueError: for a run that cannot be opened, or whose samples no picture shows.
    """
    where = device_of(device)
    done = open_run(run, weights, unfinished=True)
    done.model.to(where)
    texts = Prompts.load(run if run.is_dir() else run.parent) if _textual(done.model.backbone) else None
    easel = Easel(done, decoder_of(done.meta, autoencoder), texts)
    easel.check()
    return easel


def _textual(backbone: object) -> bool:
    return isinstance(backbone, DiffusersBackbone) and backbone.textual


@contextmanager
def served(easel: Easel, host: str = HOST, port: int | None = None) -> Iterator[str]:
    """The page, while the context lasts; gives its address.

    Raises:
        ValueError: without Gradio, or for a place that is taken or not of this machine.
    """
    number = _free(host, port)
    gradio = _gradio()
    for name in ("no_proxy", "NO_PROXY"):  # it asks its own page whether it is there: no proxy needs to know
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "localhost", host)))
    page = _page(gradio, easel)
    try:
        _, address, _ = page.launch(
            server_name=f"[{host}]" if ":" in host else host,
            server_port=number,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            inbrowser=False,
            inline=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            theme=gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            css=STYLE,
        )
        try:
            yield address
        finally:  # a page that is open somewhere is not waited for, and what is cut off is no news
            page.server.force_exit = True
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    finally:
        page.close(verbose=False)


def _gradio() -> Any:  # noqa: ANN401 - Gradio has no types
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as missing:
        raise ValueError(
            "the page needs gradio, which is not installed; pip install 'saltus[app]'"
        ) from missing
    return gradio


def _free(host: str, port: int | None) -> int:
    """A port where nobody listens yet."""
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"port: expected a number from 1 to 65535, got {port}; 7860 is usual")
    for number in PORTS if port is None else (port,):
        try:
            family, kind, _, _, place = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as asked:
                asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                asked.bind(place)
            return number
        except OSError as wrong:
            if wrong.errno != errno.EADDRINUSE or port is not None:
                why = wrong.strerror or str(wrong)
                raise ValueError(
                    f"{host}, port {number}: expected a free place of this machine, got: {why}; choose "
                    "another --port or --host"
                ) from None
    raise ValueError(f"port: expected one that is free from {PORTS[0]} to {PORTS[-1]}; choose another --port")


def _page(gradio: Any, easel: Easel) -> Any:  # noqa: ANN401
    done = easel.done
    with gradio.Blocks(title=f"{done.name} - saltus", analytics_enabled=False, fill_width=True) as page:
        gradio.HTML(_heading(easel))
        with gradio.Row():
            with gradio.Column(scale=1, min_width=280):
                asked = _controls(gradio, easel)
                with gradio.Row():
                    draw = gradio.Button("Draw", variant="primary", elem_id="draw", min_width=100)
                    other = gradio.Button("Next seed", elem_id="next", min_width=100)
            with gradio.Column(scale=4, min_width=320):
                shown = gradio.HTML(_note("Choose, then press Draw."), elem_id="samples")
        ask = {"fn": answering(easel, list(asked)), "inputs": list(asked.values()), "outputs": shown}
        ask |= {"api_visibility": "private", "show_progress": "minimal"}
        draw.click(**ask)
        seed = asked["seed"]
        after = other.click(lambda last: int(last or 0) + 1, seed, seed, api_visibility="private")
        after.then(**ask)
    return page


def _heading(easel: Easel) -> str:
    done = easel.done
    early = "" if done.after is None else f"after {done.after:,} steps of a training that is not finished"
    where = f"on {next(done.model.parameters()).device.type}"
    facts = [done.card.title, f"weights: {done.which}" if done.which else "", early, where]
    plain = "" if easel.decode is None or easel.decode.found else _note(PLAIN)
    return f"<h2>{html.escape(done.name)}</h2>{_note(' · '.join(filter(None, facts)))}{plain}"


def _controls(gradio: Any, easel: Easel) -> dict[str, Any]:  # noqa: ANN401
    """What can be chosen for this run, by the names of a wish's fields."""
    done, asked = easel.done, {}
    counts = done.card.steps
    first = [k for k in counts if k in STEPS] or [counts[0]]
    asked["steps"] = gradio.CheckboxGroup([(str(k), k) for k in counts], value=first, label="Steps")
    names = easel.names()
    if names:
        choices = [("one after another", IN_TURN), *((name, k) for k, name in enumerate(names[:LISTED]))]
        some = f" (the first {LISTED:,} of {len(names):,})" if len(names) > LISTED else ""
        what = "Class" if easel.prompts is None else "Prompt of the run"
        asked["label"] = gradio.Dropdown(choices, value=IN_TURN, label=what + some)
    if _textual(done.model.backbone):
        hint = "in place of one of the run"
        asked["prompt"] = gradio.Textbox(label="Other prompt", placeholder=hint, lines=2)
    if done.spec.guidance:
        high = STRONGEST if done.guidance is None else done.guidance
        asked["w"] = gradio.Slider(1.0, high, value=1.0, step=0.1, label="Guidance (1 is none)")
    large = LARGE if done.spec.foreign is not None or easel.decode is not None else PICTURES
    most, few = POINTS if easel.planar else large
    asked["n"] = gradio.Slider(1, most, value=few, step=1, label="Samples")
    asked["seed"] = gradio.Number(0, precision=0, minimum=0, label="Seed of the noise")
    return asked


def answering(easel: Easel, names: Sequence[str]) -> Callable[..., Iterator[str]]:
    """What the button does: values in the order of ``names`` -> what is to be seen, more and more of it.

    Args:
        easel: draws.
        names: fields of a :class:`Wish`.
    """

    def answer(*values: Any) -> Iterator[str]:  # noqa: ANN401
        seen = ""
        try:
            wish = _wish(dict(zip(names, values, strict=True)))
            for panels in easel.draw(wish):
                seen = _shown(easel, wish, panels)
                yield seen
        except Exception as wrong:  # a page that says nothing waits for ever
            if os.environ.get("SALTUS_DEBUG"):
                sys.excepthook(type(wrong), wrong, wrong.__traceback__)
            yield _wrong(wrong) + seen

    return answer


def _wish(asked: Mapping[str, Any]) -> Wish:
    """What the controls say."""
    prompt = (asked.get("prompt") or "").strip() or None
    label = asked.get("label")
    chosen = None if prompt is not None or label in (None, IN_TURN) else int(label)
    return Wish(
        steps=tuple(sorted(asked["steps"])),
        n=int(asked["n"]),
        seed=int(asked["seed"] or 0),
        label=chosen,
        prompt=prompt,
        w=None if "w" not in asked else float(asked["w"]),
    )


def _wrong(error: Exception) -> str:
    text = " ".join(str(error).split())[:MOST]
    if not isinstance(error, ValueError | OSError | ImportError):
        text = f"unexpected {type(error).__name__}: {text}"
    return f'<p class="wrong" role="alert">{html.escape(text)}</p>'


def _note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'


def _shown(easel: Easel, wish: Wish, panels: Sequence[Panel]) -> str:
    """The pictures side by side, each with its number of steps and its time."""
    drawn = "".join(_figure(panel, wish) for panel in panels)
    same = ": the same noise at all steps" if easel.planar else ": a sample keeps its place in every picture"
    facts = [f"seed {wish.seed}" + same * (len(wish.steps) > 1)]
    if easel.names() and wish.label is None and wish.prompt is None:
        what = "class" if easel.prompts is None else "prompt"
        facts.append(f"one {what} after another" + ("" if easel.planar else ", row by row"))
    facts.append("times are of the sampler alone" + ("" if easel.decode is None else ", without the decoder"))
    left = len(wish.steps) - len(panels)
    waiting = f" · {left} to come" if left else ""
    return f'<div class="panels">{drawn}</div>{_note("; ".join(facts) + waiting)}'


def _figure(panel: Panel, wish: Wish) -> str:
    file = io.BytesIO()
    panel.picture.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    answer = panel.answer
    name, taken = said(answer.steps), _taken(answer.seconds)
    return (
        f'<figure data-steps="{answer.steps}"><figcaption><b>{name}</b><span>{taken}</span></figcaption>'
        f'<img alt="{wish.n} samples at {name}" src="data:image/png;base64,{data}"></figure>'
    )


def _taken(seconds: float) -> str:
    """A time in words.

    >>> _taken(0.00213), _taken(0.25), _taken(12.3456)
    ('2.1 ms', '250 ms', '12.3 s')
    """
    if seconds < 1.0:
        return f"{1e3 * seconds:.{1 if seconds < 0.01 else 0}f} ms"
    return f"{seconds:.1f} s"
