"""One run, from the shard to files that can be carried away, within its time."""

from __future__ import annotations

import hashlib
import json
import random
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from stagevar_probe.datasets.archive import HELD_OUT_PAIR, TRAIN
from stagevar_probe.datasets.scenes import VOCABULARY, passed
from stagevar_probe.datasets.scenes.prompts import UNSEEN, suite_prompts
from stagevar_runtime.families.tokenizers.bsq_vae import BSQVAE

from ..data import DataError
from ..data.shard import Shard, read_shard
from ..state import Interrupted
from .cache import encode_pictures
from .clock import Clock
from .compiled import Compiler, compile_block
from .estimate import table
from .fit import Store, Training, build_model
from .outputs import SHEETS, Outputs, halved, read_payload
from .pictures import Pictures, put_pictures, read_emoji
from .precision import Precision
from .sample import sample, sheet, stacked
from .settings import SIZES
from .tokenizer import TokenizerTraining

READING = 0.05  # of the time, at most
TOKENIZER, ENCODING = 0.32, 0.42  # when each is over at the latest, as shares of the time
SAVE_EVERY = 60.0  # seconds, or a tenth of a short run
SHEET_EVERY = 120.0
SHEET = 24  # pictures of a sheet at most
JUDGED = 96  # scenes that are drawn to be judged, on a GPU
DRAWN = 0.04  # share of the time that sheets may take, all together


@dataclass(frozen=True)
class Asked:
    """The command line."""

    minutes: float
    shard: Path
    out: Path
    device: str
    size: str
    resume: Path | None
    compile: bool
    work: Path


class Run:
    """A method per stage, in order."""

    def __init__(self, asked: Asked, clock: Clock, stop: Callable[[], bool]) -> None:
        self.asked, self.clock, self.stop = asked, clock, stop
        self.size, self.device = SIZES[asked.size], asked.device
        self.precision = Precision(asked.device)
        self.shard: Shard = read_shard(asked.shard)
        self.digest = hashlib.sha256(asked.shard.read_bytes()).hexdigest()
        known = set(VOCABULARY)
        self.vocabulary = [*VOCABULARY, *(w for w in self.shard.words() if w not in known)]
        self.earlier = None if asked.resume is None else self.read_earlier(asked.resume)
        self.outputs = Outputs(asked.out)
        self.logs: dict[str, list[dict[str, Any]]] = {"tokenizer": [], "transformer": []}
        if self.earlier is not None:
            self.logs = json.loads(self.earlier["logs"])
        self.outputs.clear()
        self.pages: list[Image.Image] = []
        self.save_every = min(SAVE_EVERY, 0.1 * clock.length)
        self.saved_at = self.sheet_at = 0.0
        self.save_seconds, self.table = 1.0, list[str]()
        self.compiler: Compiler | None = None

    def read_earlier(self, folder: Path) -> dict[str, Any]:
        """The state to go on from.

        Raises:
            DataError: it is of another size or of other words.
        """
        state = read_payload(folder, "state")
        if state["size"] != self.size.name or state["vocabulary"] != self.vocabulary:
            raise DataError(
                f"{folder}: a run of size {state['size']} with {len(state['vocabulary'])} words, "
                f"asked for {self.size.name} with {len(self.vocabulary)}. "
                "Use its shard and --size, or go without --resume"
            )
        return state

    def say(self, text: str) -> None:
        """To whoever watches."""
        print(f"[{self.clock.now:6.1f} s] {text}", flush=True)

    def logger(self, stage: str) -> Callable[[dict[str, object]], None]:
        """A function that records and says."""

        def log(record: dict[str, object]) -> None:
            self.logs[stage].append({"seconds": round(self.clock.now, 1), **record})
            self.say(f"{stage} {json.dumps(record)}")

        return log

    def perform(self) -> None:
        """Every stage.

        Raises:
            Interrupted: it was asked to stop; the state is saved.
        """
        try:
            if self.asked.compile and self.device.startswith("cuda"):
                self.asked.work.mkdir(parents=True, exist_ok=True)
                self.compiler = Compiler(self.size, self.device, self.asked.work)
            enough = self.clock.now + self.clock.at(READING)
            emoji, index = read_emoji(self.shard, self.size.pixels, lambda: self.clock.now > enough)
            self.say(f"{len(emoji)} of {len(self.shard.emoji.of(TRAIN))} emoji decoded")
            self.precision.prepare()
            pictures = put_pictures(self.shard, emoji, index, self.size.pixels, self.device)
            tokenizer = self.train_tokenizer(pictures)
            training = self.start_transformer(tokenizer, pictures)
            self.train_transformer(training, tokenizer)
        finally:
            if self.compiler is not None:
                self.compiler.stop()

    def train_tokenizer(self, pictures: Pictures) -> BSQVAE:
        """The tokenizer, trained for its share of the time, or the earlier run's."""
        training = TokenizerTraining(self.size, self.device, self.precision)
        if self.earlier is not None:
            training.model.load_state_dict(self.earlier["tokenizer"])
            training.progress = self.earlier["tokenizer_progress"]
        if training.progress < 1:
            end = self.clock.at(TOKENIZER)
            log = self.logger("tokenizer")
            for _ in training.steps(pictures, self.clock, end, log):
                if self.stop():
                    self.save_tokenizer(training)
                    raise Interrupted
                if self.clock.now - self.saved_at > self.save_every:
                    self.save_tokenizer(training)
            self.save_tokenizer(training)
        self.say(f"tokenizer ready after {training.step} steps")
        return training.ready()

    def save_tokenizer(self, training: TokenizerTraining) -> None:
        """A checkpoint while there is no transformer."""
        state = self.state(training.model, training.progress)
        self.outputs.save({"state": state}, self.record("tokenizer", training.progress))
        self.saved_at = self.clock.now

    def start_transformer(self, tokenizer: BSQVAE, pictures: Pictures) -> Training:
        """The encoded pictures, and a transformer to train on them."""
        end = max(self.clock.at(ENCODING), self.clock.now)
        if self.earlier is not None and self.earlier["tokenizer_progress"] >= 1:
            end = self.clock.now + self.clock.at(ENCODING - TOKENIZER)
        kinds = encode_pictures(tokenizer, pictures, self.clock, end, self.precision)
        emoji, scenes = (len(kind.captions) for kind in kinds)
        self.say(f"encoded {emoji} emoji (moved copies too) and {scenes} scenes")
        model, _ = build_model(self.size, self.vocabulary, self.device)
        store = Store(*kinds, *model.words.numbered(pictures.captions))
        log = self.logger("transformer")
        training = Training(*(self.size, model, tokenizer, store, self.device, self.precision, log))
        if self.earlier is not None and "model" in self.earlier:
            training.restore({n: t.to(self.device) for n, t in self.earlier["model"].items()})
            training.step, training.seen = self.earlier["step"], self.earlier["seen"]
            training.spent = self.earlier["spent"]
            self.say(f"goes on from step {training.step}, after {training.spent:.0f} s of training")
        self.table = table(self.size, len(self.vocabulary), emoji + scenes)
        print("\n".join(self.table), flush=True)
        return training

    def train_transformer(self, training: Training, tokenizer: BSQVAE) -> None:
        """Train until there is just time enough to write everything."""
        self.saved_at = self.sheet_at = self.clock.now
        end = self.clock.length - min(12.0, 0.5 + 0.06 * self.clock.length)
        for _ in training.steps(self.clock, end):
            self.switch(training)
            if self.stop():
                self.save(training, tokenizer)
                raise Interrupted
            if self.clock.now - self.sheet_at > SHEET_EVERY:
                self.draw_sheet(training, tokenizer)
            if self.clock.now - self.saved_at > self.save_every:
                training.keep()
                self.save(training, tokenizer)
        self.save(training, tokenizer)
        self.draw_sheet(training, tokenizer)
        self.save(training, tokenizer)
        self.say(f"done: {training.step} steps, {training.seen} images; {self.asked.out}")

    def switch(self, training: Training) -> None:
        """Take compiled blocks once the child has proved them for the shapes that are used."""
        found = None if self.compiler is None else self.compiler.found()
        if found is None:
            return
        whole = all(training.batches[p.scales] == p.batch for p in self.size.prefixes)
        if found["compiled"] and whole:
            compile_block(training.model)
        elif found["compiled"]:
            found = {**found, "compiled": False, "why": "batches are smaller than was proved"}
        self.logger("transformer")(found)

    def state(self, tokenizer: BSQVAE, progress: float) -> dict[str, Any]:
        """What every checkpoint holds."""
        return {
            "size": self.size.name,
            "vocabulary": self.vocabulary,
            "shard": self.digest,
            "tokenizer": halved(tokenizer.state_dict()),
            "tokenizer_progress": progress,
            "logs": json.dumps(self.logs),
        }

    def record(self, stage: str, progress: float) -> dict[str, Any]:
        """What ``progress.json`` says, loss curves and all."""
        return {
            "size": self.size.name,
            "shard": self.digest,
            "stage": stage,
            "progress": round(progress, 4),
            "seconds": round(self.clock.now, 1),
            "device": torch.cuda.get_device_name() if self.device.startswith("cuda") else "cpu",
            "torch": torch.__version__,
            "table": self.table,
            "logs": self.logs,
        }

    def save(self, training: Training, tokenizer: BSQVAE) -> None:
        """A checkpoint: what to go on from, and what ships as it is by now."""
        begin = self.clock.now
        average = training.average.state_dict()
        if not all(bool(t.isfinite().all()) for t in average.values() if t.is_floating_point()):
            average = training.good
        state = self.state(tokenizer, 1.0) | {
            "model": halved(training.model.state_dict()),
            "step": training.step,
            "seen": training.seen,
            "spent": training.spent,
        }
        result = {
            "size": self.size.name,
            "vocabulary": self.vocabulary,
            "tokenizer": halved(tokenizer.state_dict()),
            "model": halved(average),
        }
        record = self.record("transformer", training.progress)
        self.outputs.save({"state": state, "result": result}, record)
        self.saved_at = self.clock.now
        self.save_seconds = self.saved_at - begin

    def draw_sheet(self, training: Training, tokenizer: BSQVAE) -> None:
        """Add a sheet of samples; a fault here costs the sheet, not the run."""
        self.sheet_at = self.clock.now
        longest = self.size.prefixes[-1]
        step = training.by_prefix[longest.scales] / max(1, training.taken[longest.scales])
        one = 2.5 * step / training.batches[longest.scales]  # two branches, every prefix again
        count = int(min(SHEET, max(1, DRAWN * self.clock.length / 4 / max(one, 1e-6))))
        if one > max(0.0, self.clock.left - 2 * self.save_seconds):
            self.say("no time left for a sheet of samples")
            return
        try:
            model = training.average
            prompts = sheet_prompts(self.shard, count)
            with self.precision.autocast():
                images = sample(model, tokenizer, prompts).float()
            title = f"{training.seen} images, {training.spent:.0f} s"
            self.pages.append(sheet(images, prompts, title))
            stacked(self.pages).save(self.asked.out / SHEETS, quality=85)
            found: dict[str, object] = {"sheet": count}
            if self.device.startswith("cuda"):
                asked = [t for kind, t in suite_prompts(JUDGED, seed=3) if kind != UNSEEN]
                with self.precision.autocast():
                    drawn = sample(model, tokenizer, asked).float().cpu()
                found |= {"scenes_passed": sum(passed(drawn, asked)), "of": len(asked)}
            self.logger("transformer")(found)
        except Exception:
            self.say("no sheet of samples:\n" + traceback.format_exc())


def sheet_prompts(shard: Shard, count: int) -> list[str]:
    """Captions in turn: of a trained emoji, a scene, an emoji held out in this style, a scene."""
    kinds = [shard.emoji.of(TRAIN), shard.emoji.of(HELD_OUT_PAIR)]
    emoji = [random.Random("sheet").sample(kind, min(SHEET, len(kind))) for kind in kinds]
    scenes = [text for kind, text in suite_prompts(2 * SHEET, seed=3) if kind != UNSEEN]
    out = []
    for i in range(SHEET):
        pictures = emoji[i // 2 % 2]
        out.append(scenes[i] if i % 2 else pictures[i // 4 % len(pictures)].prompt)
    return out[:count]
