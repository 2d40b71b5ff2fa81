"""What a cache holds, in pictures: images under their views, each teacher's tokens, what the codec lost."""

from collections.abc import Mapping

from pipelines.reporting.codec_losses import fidelity_table, frequency_bits, token_errors
from pipelines.reporting.images import Source, photographs, teacher_tokens
from unic_cache.evaluate.drawing import Picture
from unic_cache.evaluate.heat import grid_figure
from unic_cache.evaluate.page import Section
from unic_cache.evaluate.token_pictures import Row, Tokens, component_maps, norm_maps, row_figure, value_maps
from unic_cache.stream.address import Address
from unic_cache.stream.batches import Batch

IMAGES, VIEWS = 6, 4  # drawn, at most
ABOUT_CODEC = (
    "The mean cosine compares tokens with their decoded codes on views that calibration held out (of a recoded cache, "
    "the product over all recodings); the relative error is the distance that it stands for, sqrt(2 - 2 cosine). "
    "Nothing in a cache tells the error of one token under klt; `unic-cache verify --teacher-check N` runs the teacher "
    "again."
)


def view_section(source: Source) -> Section | None:
    """Images under up to four views; None if no image's pixels can be had."""
    numbers = source.cache.view_numbers(source.teachers[0].member, source.views)[:VIEWS]
    wanted = source.spread(numbers[0], IMAGES)
    if not wanted:
        return None
    rows = []
    for number in numbers:
        if all(name in source.tars(number) for name in names(source, wanted)):
            batch = source.batch([item._replace(number=number) for item in wanted])
            rows.append(Row(source.views.name(number), photographs(batch)))
    picture = row_figure(
        rows,
        "views",
        "Images under their views",
        f"{len(wanted)} images, each under {len(rows)} views.",
        f"The pixels that the teachers saw: recipe {source.views.kind}, {source.views.size} px, seed "
        f"{source.views.seed}. Each column is one image.",
    )
    return Section("Views", listed(source, wanted), [picture])


def token_section(source: Source, wanted: list[Address], batch: Batch) -> Section:
    """PCA maps and token norms of each teacher that has a grid."""
    found = teacher_tokens(source, batch)
    rows, spans = [Row("images", photographs(batch))], []
    for tokens in found:
        rows.append(Row(f"{tokens.name} components", list(component_maps(tokens))))
        shades, low, high = norm_maps(tokens)
        rows.append(Row(f"{tokens.name} norms", list(shades)))
        spans.append(f"{tokens.name} {low:.3g} to {high:.3g}")
    without = [teacher.name for teacher in source.teachers if teacher.name not in {tokens.name for tokens in found}]
    picture = row_figure(
        rows,
        "tokens",
        "Patch tokens of each teacher",
        f"Images, and below each the principal components and the norms of the tokens of "
        f"{', '.join(tokens.name for tokens in found) or 'no teacher'}.",
        f"View {source.views.name(wanted[0].number)}. Components: one basis per teacher; the background, below the "
        "mean of the first component, is left clear, and colours are three components of the rest. Norms of the "
        f"teacher's values, dark to bright: {'; '.join(spans) or 'none'}. Tokens that are not stored are clear too."
        + (f" Without patch tokens: {', '.join(without)}." if without else ""),
    )
    return Section("Tokens", listed(source, wanted), [picture])


def codec_section(source: Source, batch: Batch) -> Section:
    """How much each codec lost, and where, as far as the cache tells."""
    pictures = [*_error_picture(source, batch), *_frequency_picture(source)]
    return Section("What the codec lost", ABOUT_CODEC, pictures, [fidelity_table(source.cache)])


def listed(source: Source, wanted: list[Address]) -> str:
    """The images by tar and row."""
    return "Images: " + ", ".join(
        f"{source.cache.entry(item.segment, item.shard).name} row {item.row}" for item in wanted
    )


def names(source: Source, wanted: list[Address]) -> set[str]:
    """The names of the tars of these images."""
    return {source.cache.entry(item.segment, item.shard).name for item in wanted}


def _error_picture(source: Source, batch: Batch) -> list[Picture]:
    """Relative rounding error of each token, of the teachers whose codec tells it."""
    rows, spans = [Row("images", photographs(batch))], []
    tokens: Mapping[str, Tokens] = {one.name: one for one in teacher_tokens(source, batch)}
    for teacher in source.teachers:
        errors_NT = token_errors(teacher, batch.parts[teacher.name])
        if errors_NT is not None:
            shades, low, high = value_maps(tokens[teacher.name], errors_NT)
            codec = teacher.codec.features.codec
            rows.append(Row(f"{teacher.name} ({codec})", list(shades)))
            spans.append(f"{teacher.name} {100 * low:.2g} to {100 * high:.2g} %")
    if not spans:
        return []
    found = row_figure(
        rows,
        "token-errors",
        "Estimated error of each token",
        f"Images, and below each the estimated rounding error of every token: {'; '.join(spans)}.",
        "Root mean square of the rounding error over that of the standardized token, from the distance of the codes, "
        f"dark to bright: {'; '.join(spans)}. Of this codec alone: a recoded cache has its source's error too.",
    )
    return [found]


def _frequency_picture(source: Source) -> list[Picture]:
    """Where klt spends its bits, over the frequencies of the token grid."""
    bits = {teacher.name: found for teacher in source.teachers if (found := frequency_bits(teacher)) is not None}
    if not bits:
        return []
    spans = "; ".join(
        f"{name} {each.min():.1f} to {each.max():.1f}, mean {each.mean():.1f}" for name, each in bits.items()
    )
    words = (
        "bits-by-frequency",
        "Bits that klt gives each frequency",
        f"Mean bits of a coefficient at each frequency of the token grid: {spans}.",
        "Each cell is a frequency of the token grid, the lowest at the top left; the mean over channels, before its "
        "coder. One step serves all coefficients, so where bits are few, coefficients are small beside it, and most "
        "are lost. "
        f"{spans}.",
    )
    return [grid_figure(bits, ("horizontal frequency", "vertical frequency", "bits"), words)]
