"""The page: controls at the left, pictures, times and the filmstrip at the right. NiceGUI.

Everything comes from this process: no address outside the loopback is asked for anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from nicegui import run, ui

from stagevar_runtime.errors import StagevarError
from stagevar_runtime.kernels.quantised import PRECISIONS
from stagevar_runtime.profile import PlanStep

from ..report.filmstrip import data_uri
from .session import OWN, Shown, Sliders, Studio, Wish

WAIT = 0.25  # seconds a slider rests before pictures are drawn
STYLE = """
<style>
  body { background: #f7f8fa; color: #1f2430; }
  .studio { display: grid; grid-template-columns: minmax(260px, 330px) minmax(0, 1fr);
            gap: 24px; width: 100%; max-width: 1500px; margin: 0 auto; padding: 16px; }
  .controls { display: flex; flex-direction: column; gap: 6px; }
  .pictures { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 12px; }
  .pictures figure { margin: 0; }
  .pictures img { width: 100%; image-rendering: auto; border-radius: 6px; background: #e6e8ee; }
  .pictures figcaption { font-size: 13px; color: #5b6070; padding-top: 4px; }
  .scroll { overflow-x: auto; width: 100%; margin: 12px 0; }
  .scroll svg { width: 100%; min-width: 700px; height: auto; }
  .bars text { font-size: 11px; fill: #5b6070; }
  pre.plan { background: #fff; border: 1px solid #dfe2e8; border-radius: 6px; padding: 12px;
             overflow-x: auto; font-size: 12px; margin: 0; }
  @media (max-width: 760px) { .studio { grid-template-columns: minmax(0, 1fr); padding: 8px; }
                              .pictures { gap: 6px; } }
</style>
"""


def bars(shown: Shown) -> str:
    """Milliseconds by scale, exact and accelerated, as two bars on one scale."""
    rows = (("exact", shown.exact.made), ("accelerated", shown.fast.made))
    longest = max(made.loop_ms + made.decode_ms for _, made in rows)
    width, height, parts = 640, 30, []
    for n, (name, made) in enumerate(rows):
        y, x = n * (height + 16), 90.0
        parts.append(f'<text x="0" y="{y + 19}">{name}</text>')
        pieces = [(f"scale {k}", ms) for k, ms in enumerate(made.scale_ms)]
        for k, (what, ms) in enumerate([*pieces, ("decoder", made.decode_ms)]):
            size = ms / longest * width
            colour = "#b8bdc9" if what == "decoder" else f"hsl({215 + 9 * n}, 60%, {72 - 4 * k}%)"
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{size:.1f}" height="{height}" fill="{colour}" '
                f'stroke="#fff"><title>{what}: {ms:.1f} ms</title></rect>'
            )
            x += size
        total = made.loop_ms + made.decode_ms
        parts.append(f'<text x="{x + 6:.1f}" y="{y + 19}">{total:.1f} ms</text>')
    said = "Milliseconds by scale, exact above, accelerated below"
    return (
        f'<svg class="bars" viewBox="0 0 {width + 170} {2 * height + 18}" width="100%" '
        f'role="img" aria-label="{said}" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def pictures(shown: Shown) -> str:
    """Exact, accelerated and what differs, side by side."""
    exact_ms, fast_ms = shown.totals()
    told = (
        ("exact", shown.exact.made.images[0], f"exact, {exact_ms:.0f} ms"),
        ("accelerated", shown.fast.made.images[0], f"accelerated, {fast_ms:.0f} ms"),
        ("difference", shown.difference, "what differs, times 4"),
    )
    figures = [
        f'<figure><img id="{name}" src="{data_uri(image)}" alt="{said}">'
        f"<figcaption>{said}</figcaption></figure>"
        for name, image, said in told
    ]
    return f'<div class="pictures">{"".join(figures)}</div>'


def figures_line(shown: Shown) -> str:
    """Likeness and speed in one line."""
    exact_ms, fast_ms = shown.totals()
    return (
        f"PSNR {shown.psnr:.1f} dB · SSIM {shown.ssim:.3f} · "
        f"{exact_ms:.1f} → {fast_ms:.1f} ms, {exact_ms / fast_ms:.2f}x (one run, batch 1)"
    )


class Page:
    """One visitor's controls and what they see."""

    def __init__(self, studio: Studio, wish: Wish) -> None:
        self.studio, self.wish = studio, wish
        self.count = len(studio.scales)
        self.steps: tuple[PlanStep, ...] = ()
        self.asked = 0

    def build(self) -> None:
        """Lay the page out and draw the first pictures."""
        ui.add_head_html(STYLE)
        with ui.element("main").classes("studio"):
            with ui.element("section").classes("controls").props('aria-label="Plan"'):
                self._wish_controls()
                self._plan_controls()
                self._save_controls()
            with ui.element("section").props('aria-label="Pictures" aria-live="polite"'):
                self.trouble = ui.label().classes("text-red-700").props("id=trouble role=alert")
                self.pictures = ui.html("", sanitize=False)
                self.line = ui.label().props("id=figures")
                self.bars = ui.html("", sanitize=False)
                self.strip = ui.html("", sanitize=False).classes("scroll").props("id=strip")
                self.code = ui.html("", sanitize=False)
        ui.timer(0.01, self.choose, once=True)

    def _wish_controls(self) -> None:
        info = self.studio.pipeline.model.info
        name = f"label, 0 to {info.classes - 1}" if info.classes else "prompt"
        self.text = ui.input(name, value=self.wish.text).props("for=wish debounce=400")
        self.seed = ui.number("seed", value=self.wish.seed, min=0, precision=0).props("for=seed")
        for field in (self.text, self.seed):
            field.on_value_change(self.draw)

    def _plan_controls(self) -> None:
        plans = self.studio.plans()
        start = self.studio.start if self.studio.start in plans else plans[0]
        self.plan = ui.select(plans, label="plan", value=start, on_change=self.choose)
        self.plan.props("for=plan")
        self.guided = self._slider("scales with guidance", 1, self.count, 1, self.count)
        self.temperature = self._slider("temperature without guidance", 0.1, 1.5, 0.05, 1.0)
        self.keep = self._slider("kept tokens", 0.1, 1.0, 0.05, 1.0)
        self.tokens_from = self._slider("… from scale", 0, self.count - 1, 1, self.count - 2)
        self.skipped = self._slider("scales left out at the end", 0, self.count - 1, 1, 0)
        self.precision: Any = None
        if "precision" in PlanStep.model_fields:
            choices = {"": "as the model is"} | {kind: kind for kind in PRECISIONS}
            self.precision = ui.select(choices, label="precision", value="")
            self.precision.on_value_change(self._own)

    def _slider(self, name: str, low: float, high: float, step: float, value: float) -> Any:
        label = ui.label().classes("text-sm")
        slider = ui.slider(min=low, max=high, step=step, value=value)
        slider.props(f'aria-label="{name}" id="{name.replace(" ", "-")}"')
        label.bind_text_from(slider, "value", lambda v: f"{name}: {v:g}")
        slider.on("update:model-value", self._own, throttle=WAIT, leading_events=False)
        return slider

    def _save_controls(self) -> None:
        with ui.row().classes("items-end w-full no-wrap"):
            self.name = ui.input("save as", value="mine").props("for=name").classes("grow")
            ui.button("save", on_click=self.save).props("id=save outline")
            ui.button("copy", on_click=self.copy).props("id=copy outline")
        self.saved = ui.label().classes("text-sm").props("id=saved aria-live=polite")

    async def choose(self) -> None:
        """A plan was chosen by its name; one's own is what the sliders say."""
        if self.plan.value == OWN:
            await self._own()
            return
        await self._try(lambda: self.studio.steps(self.plan.value))

    async def _own(self) -> None:
        if self.plan.value != OWN:
            self.plan.set_value(OWN)  # comes back here by choose
            return
        sliders = Sliders(
            self.count,
            guided=int(self.guided.value),
            temperature=round(float(self.temperature.value), 2),
            keep=round(float(self.keep.value), 2),
            tokens_from=int(self.tokens_from.value),
            skipped=int(self.skipped.value),
            precision=(self.precision.value or None) if self.precision else None,
        )
        await self._try(sliders.steps)

    async def _try(self, steps: Callable[[], Sequence[PlanStep]]) -> None:
        try:
            self.steps = tuple(steps())
        except StagevarError as error:
            self.trouble.set_text(str(error))
            return
        await self.draw()

    async def draw(self) -> None:
        """Show what the controls say; an answer that is overtaken is dropped."""
        self.asked += 1
        turn = self.asked
        wish = Wish(self.text.value or "", int(self.seed.value or 0))
        try:
            shown = await run.io_bound(self.studio.show, wish, self.steps)
        except StagevarError as error:
            self.trouble.set_text(str(error))
            return
        if turn != self.asked:
            return
        self.trouble.set_text("")
        self.pictures.set_content(pictures(shown))
        self.line.set_text(figures_line(shown))
        self.bars.set_content(bars(shown))
        self.strip.set_content(shown.strip)
        plan = escape(self.studio.yaml(self.steps))
        self.code.set_content(f'<pre class="plan" id="yaml" tabindex="0">{plan}</pre>')

    def save(self) -> None:
        """Into the profile, as a plan that nobody has measured."""
        try:
            path = self.studio.save(self.name.value or "", self.steps)
        except StagevarError as error:
            self.saved.set_text(str(error))
            return
        self.saved.set_text(f"plan {self.name.value}, unproven, is in {path.name}")
        self.plan.set_options(self.studio.plans())

    def copy(self) -> None:
        """The plan's YAML, onto the clipboard."""
        ui.clipboard.write(self.studio.yaml(self.steps))
        self.saved.set_text("copied")


def serve(studio: Studio, wish: Wish, port: int, show: bool) -> None:
    """Serve the page on the loopback until interrupted."""

    def root() -> None:
        Page(studio, wish).build()

    title = f"StageVAR studio: {studio.pipeline.path.name}"
    ui.run(
        root,
        host="127.0.0.1",
        port=port,
        title=title,
        show=show,
        reload=False,
        show_welcome_message=False,
    )
