"""What `bench` says: the JSON document of a run, its table for people, and its file name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import stagevar_runtime
from stagevar_runtime.loop.plan import EXACT
from stagevar_runtime.model.protocol import ScaleModel
from stagevar_runtime.model.sampling import Sampling

from ..tables import columns
from .machine import describe_machine

KIND, VERSION = "stagevar-bench", 1
PUBLISHED = "published"
PEAK = {
    "cuda": "allocated on the device, weights included",
    "cpu": "resident in the process, weights included, reset before each call where the system can",
}


def document(
    name: str,
    model: ScaleModel,
    sampling: Sampling,
    batches: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    created_at: str,
    published: bool = True,
) -> dict[str, Any]:
    """The whole JSON document of one run; ``published``: whether that loop ran too."""
    notes = [
        "ms are per batch; ratios are medians of ratios within a round",
        "cpu: processor time of this process, hardly changed by what else the machine runs",
        f"peak memory: {PEAK[model.device.type]}, in the first call (later: see _later_mb)",
        "FLOP of the loop are those of the blocks the plan runs (text, AdaLN and head left out)",
    ]
    if not published:
        notes.append(f"no published loop was written for the {model.info.family} family")
    return {
        "kind": KIND,
        "version": VERSION,
        "stagevar": stagevar_runtime.__version__,
        "created_at": created_at,
        "model": {
            "name": name,
            "family": model.info.family,
            "depth": model.info.depth,
            "width": model.info.width,
            "scales": [[s.height, s.width] for s in model.scales()],
        },
        "hardware": describe_machine(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "sampling": {
            "guidance": sampling.guidance,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
        },
        **settings,
        "notes": notes,
        "batches": list(batches),
    }


def table(doc: Mapping[str, Any]) -> str:
    """The document for people, one table per batch."""
    lines = [f"{doc['model']['name']} on {doc['hardware'].get('name', '?')}, {doc['dtype']}"]
    for part in doc["batches"]:
        ceiling = part["ceiling"]
        lines.append(
            f"batch {part['batch']}: measured ceiling {ceiling['tflops']:.3g} TFLOP/s, "
            f"copy {ceiling['copy_gb_s']:.3g} GB/s"
        )
        rows = [("", "total ms", "cpu", "loop", "decode", "vs published", "vs exact", "of ceiling")]
        for name, f in part["runs"].items():
            total = f["total_ms"]
            rows.append(
                (
                    name,
                    f"{total['median']:.0f} [{total['min']:.0f}, {total['max']:.0f}]",
                    f"{f['cpu_ms']['median']:.0f}",
                    f"{f['loop_ms']['median']:.0f}",
                    f"{f['decode_ms']['median']:.0f}",
                    _ratio(f.get(f"vs_{PUBLISHED}")),
                    _ratio(f.get(f"vs_{EXACT}")),
                    f"loop {f['loop']['of_ceiling']:.0%} decode {f['decode']['of_ceiling']:.0%}",
                )
            )
        lines.append(columns(rows))
        lines += [f"{name} failed: {why}" for name, why in part["failed"].items()]
    return "\n".join(lines)


def _ratio(versus: Mapping[str, float] | None) -> str:
    if versus is None:
        return "-"
    return f"{versus['total']:.2f}x (loop {versus['loop']:.2f}x, cpu {versus['cpu']:.2f}x)"


def slug(found: Mapping[str, Any]) -> str:
    """One file a model, machine, dtype and version."""
    machine = found["hardware"]
    mode = found["compile"]
    threads = f"-{machine['threads']}t" if machine["device"] == "cpu" else ""
    parts = (
        found["model"]["name"],
        f"{machine.get('name', machine['device'])}{threads}",
        found["dtype"],
        *([] if mode.startswith("off") else [f"compile-{mode.partition(':')[0]}"]),
        f"v{found['stagevar']}",
    )
    return "_".join(re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-") for part in parts)
