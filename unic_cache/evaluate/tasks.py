"""Evaluation tasks by name."""

from unic_cache.evaluate.knn import knn_task
from unic_cache.evaluate.linear import linear
from unic_cache.evaluate.retrieval import retrieval
from unic_cache.evaluate.segmentation import segmentation

TASKS = {"knn": knn_task, "linear": linear, "retrieval": retrieval, "segmentation": segmentation, "depth": segmentation}
