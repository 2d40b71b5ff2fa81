"""Small made-up inputs of a report: results of `evaluate --json`, and run folders with a log."""

import json
import math
from pathlib import Path
from typing import Any

from unic_cache.config import DistillConfig

KINDS = {"dino": "teacher", "lite": "teacher", "random student": "random student", "student": "student"}
SCORES = {  # task -> metric, unit, higher is better, then dino, lite, random student and student
    "knn": ("20-NN", "%", True, (0.45, 0.40, 0.1, 0.48)),
    "segmentation": ("mIoU", "%", True, (0.50, 0.55, 0.2, 0.44)),
    "depth": ("RMSE", "m", False, (0.5, 0.6, 1.2, 0.4)),
}


def estimate(value: float, about: float = 0.02) -> dict[str, float]:
    return {"value": value, "low": value - about, "high": value + about}


def task(name: str) -> dict[str, Any]:
    metric, unit, higher, values = SCORES[name]
    encoders = {
        encoder: {"kind": kind, "metric": metric, **estimate(value), "metrics": {metric: estimate(value)}}
        for (encoder, kind), value in zip(KINDS.items(), values, strict=True)
    }
    teachers = {encoder: values[at] for at, encoder in enumerate(("dino", "lite"))}
    best = (max if higher else min)(teachers, key=teachers.__getitem__)
    percent = 100 * (values[3] / teachers[best] - 1) * (1 if higher else -1)
    if name == "segmentation":
        encoders["student"]["per_class"] = {"0": 0.9, "7": 0.123}
    return {
        "metric": metric,
        "unit": unit,
        "higher_is_better": higher,
        "images": 300,
        "classes": 9,
        "encoders": encoders,
        "pairs": [],
        "gain": {"student": {"over": best, "percent": percent, "low": percent - 3, "high": percent + 3}},
    }


def evaluation(*tasks: str, analysis: bool = True) -> dict[str, Any]:
    use = {"channels": 192, "dimensions": {"90": 31, "95": 50, "99": 90}, "effective_rank": 40.2}
    student = {
        "kind": "student",
        "summary": use,
        "patches": use,
        "pruning": {"metric": "20-NN", "0": 0.48, "10": 0.47, "90": 0.2},
        "components": {"metric": "20-NN", "1": 0.2, "2": 0.25, "192": 0.48},
    }
    return {
        "k": 20,
        "images": 300,
        "classes": 9,
        "encoders": [],
        "tasks": {name: task(name) for name in tasks or SCORES},
        "analysis": {"student": student, "dino": {"kind": "teacher", "summary": use}} if analysis else {},
    }


def write_evaluation(path: Path, *tasks: str, analysis: bool = True) -> str:
    path.write_text(json.dumps(evaluation(*tasks, analysis=analysis)))
    return str(path)


def write_run(folder: Path, drop: float = 0.5, steps: int = 40, knn: bool = True) -> str:
    """A run of 40 steps of 512 images, at 256 images/s and a quarter of it waiting."""
    folder.mkdir(parents=True)
    settings = DistillConfig(drop_teacher=drop, cache=str(folder / "no-cache")).to_json()
    (folder / "config.json").write_text(json.dumps(settings))
    records: list[dict[str, Any]] = []
    for step in range(10, steps + 1, 10):
        loss = math.exp(-step / 50)
        teachers = {
            name: {"cls": loss * scale, "patch": loss * scale / 2, "coefficient": 0.75, "top": top}
            for name, scale, top in (("dino", 1.0, 0.7), ("lite", 0.8, 0.3))
        }
        rates = {"images_per_second": 256.0, "waiting": 0.25}
        records.append({"kind": "train", "step": step, "loss": loss, "teachers": teachers, **rates})
        if step % 20 == 0:
            records.append({"kind": "val", "step": step, "loss": loss, "teachers": teachers})
            if knn:
                records.append({"kind": "knn", "step": step, "accuracy": 0.3, "low": 0.25, "high": 0.35, "k": 20})
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(folder)
