"""Measures, intervals and tables in Markdown."""

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.study.measure import ALL_KNN, MEAN

TITLES = {
    "knn": "k-NN",
    "retrieval": "retrieval mAP",
    "linear": "linear",
    "segmentation": "mIoU",
    "loss-views": "loss, new views",
    "loss-images": "loss, new images",
}


def title(measure: str) -> str:
    """`knn/food` as "k-NN food"."""
    if measure == MEAN:
        return "mean of tasks"
    if measure == ALL_KNN:
        return f"{TITLES['knn']}, all"
    kind, _, of = measure.partition("/")
    return f"{TITLES[kind]}{'' if of in {'mean', 'composed'} else f' {of}'}"


def spans(pairs: Sequence[Mapping[str, float]]) -> str:
    """Differences with their intervals, one after the other."""
    return "; ".join(f"{one['value']:+.2f} ({one['low']:+.2f} to {one['high']:+.2f})" for one in pairs)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
