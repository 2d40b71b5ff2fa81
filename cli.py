"""The command line: flags become a config, a pipeline runs it, and what went wrong becomes one clear line.

Exit codes: 0 done, 1 the input or the cache is not as it must be, 2 the command was not understood, 3 `verify` found a
cache that is whole as far as it goes but lacks units, 130 stopped.
"""

import json
import shlex
import signal
import sys
import warnings
from importlib.metadata import version
from typing import Any

import click

from pipelines.command.failures import clear_errors
from pipelines.command.flags import (
    CACHE,
    DEVICE,
    IMG_SIZE,
    LICENCE,
    NORMALIZE,
    NUM_WORKERS,
    PATCH_SIZE,
    POSITIONS,
    RECIPE,
    SHARDS,
    SIZE,
    SOURCE,
    TEACHER_BATCH,
    TEACHER_DTYPE,
    THREADS,
    VIEW_SEED,
    WEIGHTS,
    WORKER_INDEX,
    Examples,
    Widths,
    check_both_said,
    interrupt,
    named_file,
    on_terminal,
    ready,
)
from pipelines.command.printing import print_in_any_encoding
from pipelines.command.threads import settle_waiting
from unic_cache.config import (
    CODECS,
    DTYPES,
    NORMALIZATIONS,
    PIXEL_CODECS,
    PRECISIONS,
    RECIPES,
    STANDARDIZATIONS,
    DistillConfig,
    EvaluateConfig,
    ExtractConfig,
    RecodeConfig,
    ShardConfig,
)
from unic_cache.unsaved import InspectConfig, RepairConfig, VerifyConfig


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(version("unic-cache"), prog_name="unic-cache")
def main() -> None:
    """Cache the features of frozen teachers once, then distill students from the cache.

    Stage one: `shard` and `extract`. Stage two, on another machine if need be: `distill` and `evaluate`.
    """
    print_in_any_encoding()
    settle_waiting()
    signal.signal(signal.SIGTERM, interrupt)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")


@main.command(
    cls=Examples,
    examples="""
    unic-cache shard imagenet/train shards
    unic-cache shard imagenet/val shards-val --prefix val-
    unic-cache shard imagenet/train shards --val-fraction 0.1
    unic-cache shard labels.csv shards --per-shard 500 --seed 1
    """,
)
@click.argument("images")
@click.argument("out")
@click.option("--per-shard", default=1000, show_default=True, help="Images in a tar.")
@click.option("--prefix", default="", help="Of the tars' names, so that one cache can hold several sets.")
@click.option("--seed", default=0, show_default=True, help="Of the shuffle.")
@click.option("--strict", is_flag=True, help="Stop at the first bad image instead of skipping it.")
@click.option(
    "--val-fraction",
    default=0.0,
    show_default=True,
    help="Share of each class to hold out, in tars of their own (val-*.tar) that distill does not train on.",
)
def shard(**flags: Any) -> None:
    """Pack IMAGES (a folder of class folders, or a CSV of path,label) into WebDataset tars in OUT, with an index.

    What a file is counts, not its name: JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF, and HEIC with pillow-heif. Classes are
    numbered in the order of their names, or as a classes.json in OUT says: copy the training set's there to have its.
    """
    with clear_errors(), ready(ShardConfig(**flags)) as config:
        from pipelines import shard as pipeline

        click.echo(str(pipeline.run(config)))


@main.command(
    cls=Examples,
    examples="""
    unic-cache plan --teacher dino
    unic-cache plan --teacher dino --teacher ibot --weights ibot=ibot.pth --views 8 --tokens 64 --cache /data/cache
    unic-cache plan --teacher dino --student vit_base_patch16_224 --epochs 100 --json | jq .chosen
    unic-cache plan --teacher dino --yes
    """,
)
@click.option("--teacher", "teachers", multiple=True, metavar="NAME", help="See `unic-cache teachers`; repeatable.")
@WEIGHTS
@LICENCE
@SOURCE
@NORMALIZE
@POSITIONS
@SHARDS
@CACHE
@click.option("--views", type=int, help="Views of each image. [default: 4, or as many as the cache has]")
@RECIPE
@SIZE
@VIEW_SEED
@click.option("--codec", type=click.Choice(CODECS), help="Take this one. [default: what this machine wants]")
@click.option("--quality", type=float, help="Mean cosine that klt keeps. [default: 0.99]")
@click.option("--tokens", type=int, metavar="N", help="Keep N patch tokens of a view. [default: all; a third compared]")
@click.option("--keep-views", is_flag=True, default=False, help="Count the pixels of the views too.")
@click.option("--pixel-codec", type=click.Choice(PIXEL_CODECS), help="By which they are kept. [default: raw]")
@TEACHER_BATCH
@DEVICE
@TEACHER_DTYPE
@click.option("--images", default=256, show_default=True, help="Views of the probe.")
@click.option("--epochs", default=200.0, show_default=True, help="Of the training that will read the cache.")
@click.option("--student", default="vit_small_patch16_224", show_default=True, metavar="NAME", help="A timm ViT.")
@IMG_SIZE
@PATCH_SIZE
@click.option("--precision", default="no", show_default=True, type=click.Choice(PRECISIONS), help="The student's.")
@THREADS
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables, and ask nothing.")
@click.option("--yes", is_flag=True, help="Start the extraction without asking.")
def plan(weights: tuple[str, ...], as_json: bool, yes: bool, **flags: Any) -> None:
    """Measure on a few views what an extraction will cost, say what to run, and on a terminal ask whether to start it.

    A cache costs views x (teachers' forward + encoding) once; live teachers cost their forward in every epoch. Reading
    counts as free as long as it hides behind the student's step. Nothing is known of other machines: run it on the one
    that will do the work.
    """
    if as_json and yes:
        raise click.UsageError("--json is for programs, which start what they want themselves; leave out --yes")
    from pipelines.planning.forecast import PlanConfig

    with clear_errors(), ready(PlanConfig(weights=tuple(named_file(text) for text in weights), **flags)) as config:
        from pipelines import plan as pipeline

        found = pipeline.run(config)
        line = shlex.join(["unic-cache", "extract", *found.command])
        if as_json:
            click.echo(json.dumps({**found.to_json(), "command": line}, indent=1))
        else:
            pipeline.show(found)
            click.echo(line)
        if yes or (not as_json and on_terminal() and click.confirm("start it now?")):
            extract.main(list(found.command), prog_name="unic-cache extract", standalone_mode=False)


@main.command(
    cls=Examples,
    examples="""
    unic-cache extract --teacher dino
    unic-cache extract --teacher dino --teacher ibot --weights ibot=ibot.pth --views 4 --codec int8
    unic-cache extract --teacher dino --recipe center --views 1 --shards 'val/{000000..000049}.tar'
    unic-cache extract --teacher timm:vit_small_patch16_224 --worker-index 3 --num-workers 8
    """,
)
@click.option("--teacher", "teachers", multiple=True, metavar="NAME", help="See `unic-cache teachers`; repeatable.")
@WEIGHTS
@LICENCE
@SOURCE
@NORMALIZE
@POSITIONS
@SHARDS
@CACHE
@click.option("--views", type=int, help="Views of each image. [default: 4, or as many as the cache has; 1 of center]")
@RECIPE
@SIZE
@VIEW_SEED
@click.option("--codec", type=click.Choice(CODECS), help="How patch tokens are kept. [default: as before, or klt]")
@click.option("--quality", type=float, help="Mean cosine that klt keeps. [default: as before, or 0.99]")
@click.option("--tokens", type=int, metavar="N", help="Keep N patch tokens of a view, at random. [default: all]")
@TEACHER_BATCH
@DEVICE
@TEACHER_DTYPE
@click.option("--keep-views", is_flag=True, help="Keep the pixels too: stage two then needs no tars and no decoding.")
@click.option(
    "--pixel-codec", type=click.Choice(PIXEL_CODECS), help="compact is 0.3 of raw. [default: as before, or raw]"
)
@click.option("--strict", is_flag=True, help="Stop at the first bad image instead of skipping it.")
@click.option("--calibration-images", default=5120, show_default=True, help="Views behind the statistics.")
@THREADS
@WORKER_INDEX
@NUM_WORKERS
def extract(weights: tuple[str, ...], **flags: Any) -> None:
    """Show every view of every image to the teachers once, and keep what they say. Run again to resume or to extend."""
    check_both_said()
    with clear_errors(), ready(ExtractConfig(weights=tuple(named_file(text) for text in weights), **flags)) as config:
        from pipelines import extract as pipeline

        done = pipeline.run(config)
        for place, reason in list(done.bad.items())[:20]:
            click.echo(f"skipped {place}: {reason}", err=True)
        click.echo(
            f"{done.images} views of {done.units} units extracted, {done.bytes / 1e6:,.1f} MB kept in {config.cache}; "
            f"{done.skipped} units were there already, {len(done.bad)} bad images skipped"
        )


@main.command(
    cls=Examples,
    examples="""
    unic-cache distill
    unic-cache distill --student vit_small_patch16_224 --epochs 100 --batch-size 256 --precision bf16
    unic-cache distill --resume
    unic-cache distill --online --teacher dino --out runs/without-a-cache
    accelerate launch --num_processes 4 --module cli distill --out runs/four-gpus
    """,
)
@CACHE
@SHARDS
@click.option("--student", default="vit_base_patch16_224", show_default=True, metavar="NAME", help="A timm ViT.")
@click.option("--out", default="runs/student", show_default=True, metavar="DIR", help="The run's folder.")
@click.option("--teacher", "teachers", multiple=True, metavar="NAME", help="Of the cache; repeatable. [default: all]")
@click.option("--online", is_flag=True, help="Run the teachers beside the student, and use no cache: to compare.")
@click.option("--weights", multiple=True, metavar="[NAME=]FILE", help="A teacher's weights, with --online; repeatable.")
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(DTYPES), help="Teachers', --online.")
@click.option("--calibration-images", default=5120, show_default=True, help="Behind the statistics, --online.")
@IMG_SIZE
@PATCH_SIZE
@click.option("--init", metavar="FILE_OR_TIMM", help="Weights to begin with. [default: random]")
@click.option(
    "--recipe", type=click.Choice([r for r in RECIPES if r != "center"]), help="Of the views. [default: the cache's]"
)
@click.option("--size", type=int, help="Pixels of the views. [default: the cache's]")
@click.option("--view-seed", type=int, help="Seed of the views. [default: the cache's]")
@click.option("--views", type=int, help="Views to cycle through. [default: all]")
@click.option("--epochs", default=200.0, show_default=True, help="Passes over the images.")
@click.option("--steps", type=int, help="Instead of epochs.")
@click.option("--batch-size", default=512, show_default=True, help="Images a step, over all processes.")
@click.option("--lr", type=float, help="Peak learning rate. [default: 3e-4 * batch/256]")
@click.option("--warmup", default=0.05, show_default=True, help="Share of the steps.")
@click.option("--min-lr", default=1e-6, show_default=True, help="At the end.")
@click.option("--weight-decay", default=0.03, show_default=True)
@click.option("--drop-path", default=0.1, show_default=True, help="Rate of the last block.")
@click.option("--drop-teacher", default=0.5, show_default=True, help="Probability that a teacher is dropped.")
@click.option(
    "--ladder-widths",
    type=Widths(),
    metavar="H,LAST",
    help="Hidden widths of the projectors, of all blocks and of the last. [default: d,4d; the authors' 768,3072]",
)
@click.option(
    "--normalization",
    default="batch",
    show_default=True,
    type=click.Choice(NORMALIZATIONS),
    help="Of teacher dropping: over the batch, as the authors, or equal weight for each image.",
)
@click.option(
    "--tokens", type=int, metavar="N", help="Patch tokens of a view in the loss. [default: all that are kept]"
)
@click.option(
    "--standardize",
    default="channel",
    show_default=True,
    type=click.Choice(STANDARDIZATIONS),
    help="Of targets: each channel, as the authors; one scalar after PHI-S' rotation; or as the teacher says.",
)
@click.option("--precision", default="no", show_default=True, type=click.Choice(PRECISIONS), help="Mixed precision.")
@click.option("--tf32/--no-tf32", default=None, help="TF32 in the student's products. [default: on CUDA]")
@click.option("--seed", default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Go on where OUT's checkpoint stands.")
@click.option(
    "--val-shards",
    metavar="PATTERN",
    help="Held out of training; their loss is logged. Without tars: names of the cache.",
)
@click.option("--use-held-out", is_flag=True, help="Train on tars that earlier runs held out, too.")
@click.option("--eval-every", default=1000, show_default=True, help="Steps.")
@click.option("--log-every", default=10, show_default=True, help="Steps.")
@click.option("--save-every", default=1000, show_default=True, help="Steps.")
@click.option("--tracker", default="tensorboard", show_default=True, type=click.Choice(("tensorboard", "none")))
@click.option("--pixel-tolerance", default=0, show_default=True, help="Accept views that differ by so many levels.")
@click.option("--skip-broken", is_flag=True, help="Go on without rows that are not what was committed; count them.")
@THREADS
def distill(weights: tuple[str, ...], **flags: Any) -> None:
    """Train one student from the cache and export its encoder for timm."""
    with clear_errors(), ready(DistillConfig(weights=tuple(named_file(text) for text in weights), **flags)) as config:
        from pipelines import distill as pipeline

        done = pipeline.run(config)
        if not done.main_process:
            return
        click.echo(f"{done.steps} steps, loss {done.loss:.4f}; the encoder is {done.encoder}. Load it with")
        click.echo(f"  {done.timm_line}")
        click.echo(f"It learned from {', '.join(f'{name} ({licence})' for name, licence in done.licences.items())}.")
        if done.left_out or done.broken:
            click.echo(
                f"Broken: {done.left_out} images were left out, and images were skipped {done.broken} times; "
                f"`unic-cache verify {config.cache}` says which",
                err=True,
            )


@main.command(
    cls=Examples,
    examples="""
    unic-cache evaluate --encoder runs/student --train 'train/*.tar' --test 'val/*.tar' --cache cache
    unic-cache evaluate --encoder runs/student --shards 'shards/*.tar' --json
    """,
)
@click.option("--encoder", required=True, metavar="DIR_OR_FILE", help="A run's folder or its encoder.safetensors.")
@click.option("--shards", metavar="PATTERN", help="Labelled tars, leave-one-out.")
@click.option("--train", metavar="PATTERN", help="Labelled tars: the neighbours.")
@click.option("--test", metavar="PATTERN", help="Labelled tars: the questions.")
@click.option("--cache", metavar="DIR", help="A cache with a center view of the teachers. [default: no teachers]")
@click.option("--teacher", "teachers", multiple=True, metavar="NAME", help="Of the cache; repeatable. [default: all]")
@click.option("--size", type=int, help="Pixels of the center views. [default: the cache's, or the student's input]")
@click.option("--k", default=20, show_default=True, help="Neighbours, for the table.")
@click.option("--batch-size", default=64, show_default=True)
@DEVICE
@click.option("--seed", default=0, show_default=True, help="Of the random student and of the intervals.")
@THREADS
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def evaluate(as_json: bool, **flags: Any) -> None:
    """Weighted k-NN on frozen features: the student, a random student, and each teacher from the cache."""
    with clear_errors(), ready(EvaluateConfig(**flags)) as config:
        from pipelines import evaluate as pipeline

        result = pipeline.run(config)
        if as_json:
            click.echo(json.dumps(result.to_json(), indent=1))
        else:
            pipeline.show(result)


@main.command(
    cls=Examples,
    examples="""
    unic-cache recode cache cache-small --quality 0.98
    unic-cache recode cache cache-fast --codec int4 --tokens 64
    unic-cache recode https://example.org/cache cache --teacher dino --no-views
    unic-cache recode cache cache-small --quality 0.98 --worker-index 3 --num-workers 8
    """,
)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option("--codec", type=click.Choice(CODECS), help="How patch tokens are kept. [default: as DST or SRC has it]")
@click.option(
    "--quality", type=float, help="Mean cosine to SRC that klt keeps. [default: as DST or SRC has it, or 0.99]"
)
@click.option("--tokens", type=int, metavar="N", help="Keep N patch tokens of a view. [default: as DST or SRC has it]")
@click.option("--teacher", "teachers", multiple=True, metavar="NAME", help="Of SRC; repeatable. [default: all]")
@click.option("--views/--no-views", default=True, show_default=True, help="Copy the kept pixels too.")
@DEVICE
@THREADS
@WORKER_INDEX
@NUM_WORKERS
def recode(**flags: Any) -> None:
    """Make of the cache SRC a cache DST by another codec or with fewer tokens; no teacher runs. Run again to resume."""
    check_both_said()
    with clear_errors(), ready(RecodeConfig(**flags)) as config:
        from pipelines import recode as pipeline

        click.echo("\n".join(pipeline.run(config).lines(config)))


@main.command(
    cls=Examples,
    examples="""
    unic-cache inspect cache
    unic-cache inspect cache --json | jq .teachers
    unic-cache inspect runs/student --provenance
    """,
)
@click.argument("cache", metavar="CACHE_OR_ENCODER")
@click.option("--provenance", is_flag=True, help="Show weights, sources, licences, preprocessing and versions.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def inspect(cache: str, provenance: bool, as_json: bool) -> None:
    """Show what a cache holds: teachers, views, shards done and missing, bytes, codec, calibration.

    With --provenance: what a cache, or an exported student, was made from.
    """
    with clear_errors(), ready(InspectConfig(cache, provenance)) as config:
        from pipelines import inspect as contents
        from pipelines import provenance as origins

        pipeline = origins if provenance or origins.is_student(config.cache) else contents
        report = pipeline.run(config.cache)
        if as_json:
            click.echo(json.dumps(report, indent=1))
        else:
            pipeline.show(report)


@main.command(
    cls=Examples,
    examples="""
    unic-cache verify cache
    unic-cache verify cache --shards 'shards/*.tar' --pixel-check 500
    unic-cache verify cache --shards 'shards/*.tar' --teacher-check 32 --weights ibot=ibot.pth
    unic-cache verify cache --json | jq .broken
    """,
)
@click.argument("cache")
@click.option("--shards", metavar="PATTERN", help="Tars, to make a sample of views again and compare their pixels.")
@click.option("--pixel-check", type=int, metavar="N", help="Views to make again. [default: 64, with --shards]")
@click.option("--teacher-check", default=0, metavar="N", help="Images to show to each teacher again. [default: none]")
@WEIGHTS
@DEVICE
@THREADS
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def verify(weights: tuple[str, ...], as_json: bool, **flags: Any) -> None:
    """Read all of CACHE and say whether it is what was committed. Exit code 0: whole, 3: incomplete, 1: broken."""
    with clear_errors(), ready(VerifyConfig(weights=tuple(named_file(text) for text in weights), **flags)) as config:
        from pipelines import verify as pipeline

        report = pipeline.run(config)
        click.echo(json.dumps(report.to_json(), indent=1) if as_json else "\n".join(report.lines()))
    sys.exit(report.exit_code)


@main.command(cls=Examples, examples="unic-cache repair cache --dry-run\nunic-cache repair cache")
@click.argument("cache")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@THREADS
def repair(cache: str, dry_run: bool, threads: int) -> None:
    """Un-commit what is broken in CACHE, so that `extract` makes it again; stop all extraction into it first."""
    with clear_errors(), ready(RepairConfig(cache, dry_run, threads)) as config:
        from pipelines import repair as pipeline

        done = pipeline.run(config.cache, config.dry_run, config.threads)
        click.echo("\n".join(done.lines(dry_run)))
    sys.exit(1 if done.left else 0)


@main.command(cls=Examples, examples="unic-cache teachers\nunic-cache teachers --json")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def teachers(as_json: bool) -> None:
    """List the teachers that are known by name; any timm model is `timm:NAME`."""
    from unic_cache.teachers.catalog import CATALOG

    specs = [spec.to_json() for spec in CATALOG.values()]
    if as_json:
        click.echo(json.dumps(specs, indent=1))
        return
    for spec in specs:
        click.echo(f"{spec['name']:<20}{spec['about']}")
        click.echo(
            f"{'':<20}{spec['arch']} at {spec['input_size']} px, CLS {spec['cls_rule']}, patches {spec['patch_rule']}"
        )
        click.echo(f"{'':<20}{spec['licence']}; weights: {spec['published']}")
    click.echo(f"{'timm:NAME':<20}any timm model, ViT or CNN, as in timm:resnet50; NAME@SIZE sets the input size in px")


if __name__ == "__main__":
    main()
