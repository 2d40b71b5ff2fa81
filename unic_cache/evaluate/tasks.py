"""Evaluation tasks by name, in the order in which they are measured and shown."""

from collections.abc import Mapping

from unic_cache.evaluate.depth import depth
from unic_cache.evaluate.knn import knn_task
from unic_cache.evaluate.linear import linear
from unic_cache.evaluate.retrieval import retrieval
from unic_cache.evaluate.segmentation import segmentation
from unic_cache.evaluate.task import Task

TASKS: Mapping[str, Task] = {
    "knn": knn_task,
    "linear": linear,
    "retrieval": retrieval,
    "segmentation": segmentation,
    "depth": depth,
}
