"""The page: one tab for each thing to do with a run. What a tab computes is in `actions`."""

import functools
import html
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr
import numpy as np
import PIL.Image
from jaxtyping import Bool

from vqgan_jax.data import photos
from vqgan_jax.demo import actions
from vqgan_jax.demo.actions import Models, Request

MAX_BYTES = 16 * 2**20  # of an upload
MAX_PIXELS = 2**25  # of a picture; Gradio itself opens what has up to twice as many
MAX_WAITING = 32  # clicks that wait for the models, of all visitors together; the next one is told so
FORGOTTEN = (300, 3600)  # files of visitors: looked for every five minutes, deleted when they are an hour old
BRUSHES = 24  # colours of a palette
ORANGE = "#f97316"
FIRST_WAIT = "Working. The first picture of a kind takes longer, because JAX compiles for it."
CSS = """
.gradio-container { width: 100% !important; max-width: 1100px !important; margin: 0 auto !important; }
.pixels img { image-rendering: pixelated; }
.pixels .grid-container { grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)) !important; }
.pixels .grid-wrap { min-height: 0 !important; }
.bar { height: 8px; border-radius: 4px; background: #8884; overflow: hidden; }
.bar i { display: block; height: 100%; background: #f97316; }
.swatch { white-space: nowrap; margin-right: .7em; }
.swatch i { display: inline-block; width: 1em; height: 1em; margin-right: .3em; vertical-align: -.12em;
            border: 1px solid #888; border-radius: 2px; }
"""


def launch(models: Models, title: str, *, host: str, port: int | None) -> None:
    """Shows the page until it is interrupted.

    Args:
      models: what to show.
      title: of the page.
      host: address to listen on.
      port: None for the first free one from 7860 on.

    Raises:
      OSError: the port is taken.
    """
    PIL.Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    page(models, title).launch(
        server_name=host,
        server_port=port,
        max_file_size=MAX_BYTES,
        state_session_capacity=100,
        share=False,
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        footer_links=[],
        css=CSS,
    )


def page(models: Models, title: str) -> gr.Blocks:
    """Returns the page with those tabs that the models have something for."""
    with gr.Blocks(title="vqgan_jax", analytics_enabled=False, delete_cache=FORGOTTEN) as blocks:
        gr.Markdown(f"### {html.escape(title)}")
        with gr.Tab("Codes"):
            codes_tab(models)
        if models.prior is not None:
            condition = models.prior.module.condition
            if condition.argument == "condition":
                with gr.Tab("Condition"):
                    condition_tab(models)
            else:
                with gr.Tab("Sample"):
                    sample_tab(models)
                with gr.Tab("Complete"):
                    complete_tab(models)
                if models.prior.module.order == "raster":
                    with gr.Tab("Wide"):
                        wide_tab(models)
    return blocks.queue(max_size=MAX_WAITING, default_concurrency_limit=1)


# What the tabs share


def plainly(action: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Returns a handler that shows the mistakes of a visitor on the page, in one line and without a traceback."""

    @functools.wraps(action)
    def handler(*values: Any) -> Iterator[Any]:
        try:
            yield from action(*values)
        except (ValueError, OSError) as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from None

    return handler


def on(trigger: Any, action: Callable[..., Iterator[Any]], inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """Runs an action at a click: one at a time of all visitors'."""
    return trigger(
        plainly(action), [*inputs], [*outputs], concurrency_id="models", concurrency_limit=1, show_progress="minimal"
    )


def progress(share: float, text: str = "") -> str:
    """Returns a bar, with the share in words below."""
    return f'<div class="bar"><i style="width: {share:.0%}"></i></div><small>{text or f"{share:.0%}"}</small>'


def buttons(name: str) -> tuple[gr.Button, gr.Button, gr.HTML]:
    """Shows a button that starts, one that stops, and room for the progress."""
    with gr.Row():
        start, stop = gr.Button(name, variant="primary", min_width=120), gr.Button("Stop", min_width=80)
    return start, stop, gr.HTML()


def stoppable(stop: gr.Button, bar: gr.HTML, event: Any) -> None:
    """Lets a button end an event after the chunk that is being computed."""
    stop.click(lambda: "<small>Stopped.</small>", None, bar, cancels=[event], queue=False)


def picture(label: str) -> gr.Image:
    """Shows a picture as it is, without loss; its name stands above, not on it."""
    with gr.Column(min_width=200):
        gr.Markdown(label)
        return gr.Image(
            label=label, format="png", interactive=False, show_label=False, buttons=[], elem_classes="pixels"
        )


def gallery(label: str = "Images") -> gr.Gallery:
    """Shows images side by side."""
    gr.Markdown(label)
    return gr.Gallery(label=label, format="png", show_label=False, object_fit="contain", elem_classes="pixels")


def choose_picture() -> list[Any]:
    """Shows two ways to give a picture."""
    kinds = [".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"]
    return [
        gr.File(label="Drop a picture", file_types=kinds, height=140),
        gr.Dropdown(photos.NAMES, value="chelsea", label="or a photograph of scikit-image", interactive=True),
    ]


def editor(label: str, colors: Sequence[str], size: int = 32, value: Any = None) -> gr.ImageEditor:
    """Shows a picture to paint on with a brush of `size` pixels."""
    return gr.ImageEditor(
        value,
        label=label,
        format="png",
        sources=[],
        transforms=[],
        layers=False,
        canvas_size=(384, 384),
        brush=gr.Brush(default_size=size, colors=[*colors], default_color=colors[0], color_mode="fixed"),
        eraser=gr.Eraser(default_size=24),
        buttons=[],
    )


def background(image: actions.Picture) -> dict[str, Any]:
    """Returns the value of an editor with nothing painted yet."""
    return {"background": image, "layers": [], "composite": None}


def strokes(value: dict[str, Any]) -> Bool[np.ndarray, "_H _W"]:
    """Returns where something is painted; ValueError for an editor that is empty."""
    layers = (value or {}).get("layers")
    if not layers:
        raise ValueError("there is no picture to paint on yet. Choose one first.")
    return np.any([layer[..., 3] > 127 for layer in layers], axis=0)


def settings(models: Models) -> list[Any]:
    """Shows how to draw: class, count, seed and what is folded away; `request_of` reads the values."""
    run, size, prior = Request.of_run(models), models.tokenizer.codebook_size, actions.prior_of(models)
    classes = models.classes
    droppable = prior.module.condition.droppable
    shown = [
        gr.Dropdown(
            classes,
            value=classes[0] if classes else None,
            label="Class",
            visible=bool(classes),
            allow_custom_value=True,
        ),
        gr.Slider(1, actions.MAX_COUNT, run.count, step=1, label="Images"),
        gr.Number(run.seed, precision=0, minimum=0, maximum=actions.MAX_SEED, label="Seed"),
    ]
    with gr.Accordion("How to draw", open=False):
        return [
            *shown,
            gr.Slider(0.1, 2, run.temperature, step=0.05, label="Temperature"),
            gr.Slider(1, size, run.top_k or size, step=1, label="k: the likeliest codes (all is off)"),
            gr.Slider(0.05, 1, run.top_p, step=0.05, label="p: of this probability together (1 is off)"),
            gr.Slider(0, 10, run.guidance, step=0.25, label="Guidance (1 is off)", visible=droppable),
            gr.Slider(0.05, 1, 1.0, step=0.05, label="Share to accept (1 is all)", visible=models.scorer is not None),
        ]


def request_of(models: Models, values: Sequence[Any]) -> tuple[int, Request]:
    """Returns the class and the request that the values of `settings` say."""
    name, count, seed, temperature, top_k, top_p, guidance, accept_rate = values
    top_k = 0 if top_k == models.tokenizer.codebook_size else int(top_k)
    request = Request(
        count=int(count),
        seed=int(seed or 0),
        temperature=float(temperature),  # as an integer it would be another compilation
        top_k=top_k,
        top_p=float(top_p),
        guidance=float(guidance),
        accept_rate=float(accept_rate),
    )
    return models.class_of(name), request


def images_of(models: Models, label: int, rows: actions.Rows, request: Request) -> Iterator[tuple[str, list[Any]]]:
    """Yields the progress and the images so far."""
    for share, drawn in actions.draw(models, label, rows, request):
        yield progress(share), [actions.shown(image, 192) for image in drawn]


# The tabs


def codes_tab(models: Models) -> None:
    """A picture, its codes, and what the decoder makes of codes that are moved."""
    sides = [models.side * times for times in (1, 2, 4)]
    codes, source = gr.State(None, time_to_live=3600), gr.State(None)
    with gr.Row():
        with gr.Column(min_width=240):
            chosen = choose_picture()
            side = gr.Radio(sides, value=sides[0], label="Pixels a side")
            show = gr.Button("Show its codes", variant="primary")
        original, grid, recon = picture("Picture"), picture("Codes: click one to pick it"), picture("Decoded")
    gr.Markdown("Pick a code in the grid, paint where it shall go, and write it there.")
    with gr.Row():
        canvas = editor("Paint over codes", [ORANGE], 24)
        with gr.Column(min_width=240):
            code = gr.Number(0, precision=0, minimum=0, maximum=models.tokenizer.codebook_size - 1, label="Code")
            around = gr.Checkbox(label="Copy what lies around the picked code, too")
            write = gr.Button("Write under the brush", variant="primary")
    results = [codes, source, grid, recon, canvas]

    def changed(indices: actions.Indices) -> tuple[Any, ...]:
        decoded = actions.shown(actions.decode(models, indices))
        return indices, None, actions.colored(indices), decoded, background(decoded)

    def open_picture(file: str | None, name: str | None, side: int) -> Iterator[tuple[Any, ...]]:
        if side not in sides:
            raise ValueError(f"the side must be one of {sides}; got {side!r:.40}. Choose one.")
        image = actions.read(file, name, side)
        yield actions.shown(image), *changed(actions.encode(models, image))

    def pick(indices: actions.Indices | None, event: gr.SelectData) -> tuple[Any, ...]:
        if indices is None:
            raise gr.Error("there are no codes yet. Choose a picture first.", print_exception=False)
        size = len(actions.colored(indices)) // len(indices)
        row, column = (min(int(place) // size, len(indices) - 1) for place in (event.index[1], event.index[0]))
        return int(indices[row, column]), (row, column), actions.colored(indices, (row, column))

    def repaint(
        indices: actions.Indices | None, value: Any, code: int, around: bool, source: Any
    ) -> Iterator[tuple[Any, ...]]:
        painted = strokes(value)
        if indices is None:
            raise ValueError("there are no codes yet. Choose a picture first.")
        if around and source is None:
            raise ValueError("there is no picked code yet. Click one in the grid first.")
        target = actions.covered(painted, indices.shape)
        yield changed(actions.paint(indices, target, code, source if around else None))

    on(show.click, open_picture, [*chosen, side], [original, *results])
    grid.select(pick, codes, [code, source, grid], show_progress="hidden")
    on(write.click, repaint, [codes, canvas, code, around, source], results)


def sample_tab(models: Models) -> None:
    """Images of a class."""
    with gr.Row():
        with gr.Column(min_width=240):
            values = settings(models)
            start, stop, bar = buttons("Draw")
        with gr.Column(scale=2, min_width=300):
            images = gallery()

    def sample(*values: Any) -> Iterator[tuple[str, list[Any]]]:
        label, request = request_of(models, values)
        yield progress(0, FIRST_WAIT), []
        yield from images_of(models, label, {}, request)

    stoppable(stop, bar, on(start.click, sample, values, [bar, images]))


def complete_tab(models: Models) -> None:
    """A picture of which a part is drawn anew."""
    original = gr.State(None, time_to_live=3600)
    with gr.Row():
        with gr.Column(min_width=240):
            chosen = choose_picture()
            show = gr.Button("Take it")
        canvas = editor("Paint over what to draw anew", [ORANGE], 48)
    with gr.Row():
        with gr.Column(min_width=240):
            values = settings(models)
            start, stop, bar = buttons("Complete")
        with gr.Column(scale=2, min_width=300):
            images = gallery("Completions")

    def open_picture(file: str | None, name: str | None) -> Iterator[tuple[Any, ...]]:
        image = actions.read(file, name, models.side)
        yield image, background(actions.shown(image))

    def complete(image: actions.Picture | None, value: Any, *values: Any) -> Iterator[tuple[str, list[Any]]]:
        painted = strokes(value)
        if image is None:
            raise ValueError("there is no picture yet. Take one first.")
        label, request = request_of(models, values)
        rows = actions.completion(models, image, painted)
        yield progress(0, FIRST_WAIT), []
        yield from images_of(models, label, rows, request)

    on(show.click, open_picture, chosen, [original, canvas])
    stoppable(stop, bar, on(start.click, complete, [original, canvas, *values], [bar, images]))


def condition_tab(models: Models) -> None:
    """Images of a condition that is drawn here, or comes in a file."""
    condition = actions.prior_of(models).module.condition
    brushes = condition.brushes(models.category_names)
    names, colors = [*brushes][: BRUSHES + 1], ["#{:02x}{:02x}{:02x}".format(*color) for color in brushes.values()]
    with gr.Row():
        with gr.Column(min_width=300):
            canvas = gr.State(None)
            if names:
                blank = np.full((384, 384, 3), brushes[names[0]], np.uint8)
                canvas = editor("Draw the condition", colors[1 : len(names)], value=background(blank))
                swatch = '<span class="swatch"><i style="background: {}"></i>{}</span>'
                legend = zip(colors[1:], names[1:], strict=False)
                gr.HTML(" ".join(swatch.format(color, html.escape(name)) for color, name in legend))
            kinds = [*condition.files]
            file = gr.File(label=f"or a file: {', '.join(kinds)}", file_types=kinds, height=140)
            values = settings(models)
            start, stop, bar = buttons("Draw")
        with gr.Column(scale=2, min_width=300):
            preview, images = gallery("The condition, and what the prior sees of it"), gallery()

    def sample(value: Any, file: str | None, *values: Any) -> Iterator[tuple[str, list[Any], list[Any]]]:
        drawing = None if not value or value["composite"] is None else value["composite"][..., :3]
        layout = actions.drawn_condition(models, drawing, file)
        label, request = request_of(models, values)
        looks = [actions.shown(look, 192) for look in actions.looks(models, layout)]
        yield progress(0, FIRST_WAIT), looks, []
        for bar, drawn in images_of(models, label, {"condition": layout}, request):
            yield bar, looks, drawn

    stoppable(stop, bar, on(start.click, sample, [canvas, file, *values], [bar, preview, images]))


def wide_tab(models: Models) -> None:
    """An image wider than those of training, while it grows."""
    times = gr.Slider(2, actions.MAX_TIMES, 8, step=1, label=f"Width, in images of {models.side} pixels")
    values = settings(models)
    values[1].visible = False  # one image
    start, stop, bar = buttons("Draw")
    image = picture("Image")

    def grow(times: int, *values: Any) -> Iterator[tuple[str, Any]]:
        label, request = request_of(models, values)
        yield progress(0, FIRST_WAIT), None
        for share, drawn in actions.wide(models, label, int(times), request):
            yield progress(share), actions.shown(drawn, 192)

    stoppable(stop, bar, on(start.click, grow, [times, *values], [bar, image]))
