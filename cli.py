"""The command line: flags become a config, a stage runs it, errors become one line.

Exit codes: 0 done; 1 the input or the cache is faulty; 2 usage error; 3 `verify` found an incomplete cache, sound
otherwise; 130, 143 or 138 stopped by Ctrl-C, SIGTERM or SIGUSR1.
"""

import dataclasses
import json
import shlex
import sys
import warnings
from functools import partial
from importlib.metadata import version

import click

from pipelines.command.failures import clear_errors
from pipelines.command.printing import print_in_any_encoding
from pipelines.command.signals import stop_at_once
from pipelines.command.stages import Examples, on_terminal, stage
from pipelines.command.threads import settle_waiting
from unic_cache.config import (
    DistillConfig,
    EvaluateConfig,
    ExportConfig,
    ExtractConfig,
    InspectConfig,
    PlanConfig,
    RecodeConfig,
    RepairConfig,
    ReportConfig,
    ShardConfig,
    StatusConfig,
    VerifyConfig,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(version("unic-cache"), prog_name="unic-cache")
def main() -> None:
    """Cache the features of frozen teachers once, then distill students from the cache.

    Stage one: `shard` and `extract`. Stage two, on another machine if you like: `distill` and `evaluate`.
    """
    print_in_any_encoding()
    settle_waiting()
    stop_at_once()
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")


command = partial(stage, main)
json_flag = partial(click.option, "--json", "as_json", is_flag=True)


@command(
    ShardConfig,
    examples="""
    unic-cache shard imagenet/train shards
    unic-cache shard imagenet/val shards-val --prefix val-
    unic-cache shard imagenet/train shards --val-fraction 0.1
    unic-cache shard labels.csv shards --per-shard 500 --seed 1
    unic-cache shard food-101/images food --list food-101/meta/train.txt
    unic-cache shard images/training ade --masks annotations/training --mask-offset -1
    """,
)
def shard(config: ShardConfig) -> None:
    """Pack IMAGES into WebDataset tars in OUT, with an index.

    IMAGES is a folder of class folders or of images, a CSV of path,label, or a JSON as iNaturalist's. Masks and depth
    maps are found by the image's name.

    Files are recognized by content, not by name: JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF, and HEIC with pillow-heif.
    Classes are numbered in the order of their names, or by a classes.json in OUT: copy the training set's there to
    number them alike.
    """
    from pipelines import shard as pipeline

    click.echo(str(pipeline.run(config)))


@command(
    PlanConfig,
    examples="""
    unic-cache plan --teacher dino
    unic-cache plan --teacher dino --teacher ibot --weights ibot=ibot.pth --views 8 --tokens 64 --cache /data/cache
    unic-cache plan --teacher dino --student vit_base_patch16_224 --epochs 100 --json | jq .chosen
    unic-cache plan --teacher dino --yes
    """,
    without=("strict", "calibration_images", "ray", "worker_index", "num_workers"),
)
@json_flag(help="Print JSON instead of tables, and do not ask.")
@click.option("--yes", is_flag=True, help="Start the extraction without asking.")
def plan(config: PlanConfig, as_json: bool, yes: bool) -> None:
    """Forecast an extraction from a few views, print the command for it, and on a terminal offer to start it.

    A cache costs views x (teachers' forward + encoding) once; live teachers cost their forward pass in every epoch.
    Reading is free while it hides behind the student's step. Run this on the machine that will do the work: it
    measures no other.
    """
    if as_json and yes:
        raise click.UsageError("--json only prints; leave out --yes, and start the printed command yourself")
    from pipelines import plan as pipeline

    found = pipeline.run(config)
    line = shlex.join(["unic-cache", "extract", *found.command])
    if as_json:
        click.echo(json.dumps({**dataclasses.asdict(found), "command": line}, indent=1))
    else:
        pipeline.show(found)
        click.echo(line)
    if yes or (not as_json and on_terminal() and click.confirm("start it now?")):
        extract.main(list(found.command), prog_name="unic-cache extract", standalone_mode=False)


@command(
    ExtractConfig,
    examples="""
    unic-cache extract --teacher dino
    unic-cache extract --teacher dino --teacher ibot --weights ibot=ibot.pth --views 8 --codec int8
    unic-cache extract --teacher dino --recipe center --views 1 --shards 'val/{000000..000049}.tar'
    unic-cache extract --teacher dino --device all
    unic-cache extract --teacher dino --cache s3://bucket/cache --shards 's3://bucket/shards/*.tar' --ray auto
    unic-cache extract --teacher timm:vit_small_patch16_224 --worker-index 3 --num-workers 8
    """,
)
def extract(config: ExtractConfig) -> None:
    """Run every teacher once on every view of every image and store the features. Run again to resume or extend."""
    from pipelines import extract as pipeline

    done = pipeline.run(config)
    for place, reason in list(done.bad.items())[:20]:
        click.echo(f"skipped {place}: {reason}", err=True)
    click.echo(
        f"{done.images} views of {done.units} units extracted, {done.bytes / 1e6:,.1f} MB kept in {config.cache}; "
        f"{done.skipped} units were there already, {len(done.bad)} bad images skipped"
    )


@command(
    DistillConfig,
    examples="""
    unic-cache distill
    unic-cache distill --student vit_small_patch16_224 --epochs 100 --batch-size 256 --precision bf16
    unic-cache distill --resume
    unic-cache distill --out runs/preempted --resume-if-any --keep-checkpoints 3
    unic-cache distill --from runs/student --img-size 336 --cache cache-336 --out runs/second-stage
    unic-cache distill --online --teacher dino --out runs/without-a-cache
    accelerate launch --num_processes 4 --module cli distill --out runs/four-gpus --loss-group 128
    torchrun --nproc_per_node 8 -m cli distill --student vit_giant_patch14_dinov2 --shard-student --precision bf16
    """,
)
def distill(config: DistillConfig) -> None:
    """Train a student from the cache and export its encoder for timm."""
    from pipelines import distill as pipeline

    done = pipeline.run(config)
    if not done.main_process:
        return
    if done.url is None:
        click.echo(f"{done.steps} steps, loss {done.loss:.4f}; the encoder is {done.encoder}. Load it with")
        click.echo(f"  {done.folder_line}")
    else:
        where = f"{done.url}/{done.encoder.name}"
        click.echo(f"{done.steps} steps, loss {done.loss:.4f}; the encoder is {where}. Copy it here, and load it with")
        click.echo(f"  {done.timm_line}")
    click.echo(
        f"It inherits the terms of {', '.join(f'{name} ({licence})' for name, licence in done.licences.items())}."
    )
    if done.left_out or done.broken:
        click.echo(
            f"Broken: {done.left_out} images were left out, and images were skipped {done.broken} times; "
            f"`unic-cache verify {config.cache}` says which",
            err=True,
        )


@command(
    EvaluateConfig,
    examples="""
    unic-cache evaluate --encoder runs/student --train 'train/*.tar' --test 'val/*.tar' --cache cache
    unic-cache evaluate --encoder runs/a --encoder runs/b --encoder timm:resnet50 --shards 'shards/*.tar' --json
    unic-cache evaluate --encoder runs/student --train 'ade/train/*.tar' --test 'ade/val/*.tar' --task segmentation
    unic-cache evaluate --cache cache --shards 'shards/*.tar' --features features --out teachers.json
    """,
)
@json_flag(help="Print JSON instead of the tables.")
def evaluate(config: EvaluateConfig, as_json: bool) -> None:
    """Compare encoders on every task that the labels allow: students, a random one, cached teachers, timm models.

    Tasks: knn, linear and retrieval by `.cls` labels, segmentation by `.mask.png`, depth by `.depth.png` or
    `.depth.npy`. Every number has a 95% bootstrap interval over the test images. See docs/EVALUATION.md.
    """
    from pipelines import evaluate as pipeline

    result = pipeline.run(config)
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=1))
    else:
        pipeline.show(result)


@command(
    ExportConfig,
    examples="""
    unic-cache export runs/student exported
    unic-cache export runs/student published --format hf --results results.json --push my-group/my-student --private
    unic-cache export runs/student/encoder.safetensors onnx --format onnx
    unic-cache export runs/student heads --format heads
    """,
)
def export(config: ExportConfig) -> None:
    """Write the student of RUN as a folder OUT that other software loads, with a model card.

    RUN is a run's folder, or an encoder's file alone. Students inherit the terms of their teachers' licences; the card
    lists them.
    """
    from pipelines import export as pipeline

    done = pipeline.run(config)
    click.echo(f"The export is {done.out}. Load it with\n  {done.line}")
    if done.licences:
        click.echo(
            f"It inherits the terms of {', '.join(f'{name} ({licence})' for name, licence in done.licences.items())}."
        )
    if done.address is not None:
        click.echo(f"It is on the hub: {done.address}")


@command(
    ReportConfig,
    examples="""
    unic-cache report report runs/student results.json
    unic-cache report report runs/dropping runs/no-dropping --pictures 0
    unic-cache report report runs/student results.json --cache cache --shards 'val/*.tar' --pictures 8
    """,
)
def report(config: ReportConfig) -> None:
    """Draw runs of `distill` and results of `evaluate --json` as one page, OUT/index.html, and OUT/figures/.

    Gains over the best teacher, losses and coefficients per teacher, task against task, patch tokens, costs: each
    figure whose data is there, as SVG and PNG too. The page needs no network.
    """
    from pipelines import report as pipeline

    click.echo(f"The report is {pipeline.run(config)}")


@command(
    RecodeConfig,
    examples="""
    unic-cache recode cache cache-small --quality 0.9
    unic-cache recode cache cache-fast --codec int4 --tokens 64
    unic-cache recode https://example.org/cache cache --teacher dino --no-views
    unic-cache recode cache cache-small --quality 0.9 --worker-index 3 --num-workers 8
    unic-cache recode cache cache-small --quality 0.9 --ray 10.0.0.1:6379
    """,
)
def recode(config: RecodeConfig) -> None:
    """Convert SRC into a new cache DST with another codec or fewer tokens; no teacher runs. Run again to resume."""
    from pipelines import recode as pipeline

    click.echo("\n".join(pipeline.run(config).lines(config)))


@command(
    InspectConfig,
    examples="""
    unic-cache inspect cache
    unic-cache inspect cache --json | jq .teachers
    unic-cache inspect runs/student --provenance
    unic-cache inspect cache --pictures pictures --student runs/student
    """,
)
@json_flag(help="Print JSON instead of tables.")
def inspect(config: InspectConfig, as_json: bool) -> None:
    """Show what a cache holds: teachers, views, shards done and missing, bytes, codec, calibration.

    With --provenance, show what a cache or an exported student was made from. With --pictures, draw images, tokens and
    the codec's losses, and with --student the images that it finds hardest.
    """
    from pipelines import inspect as contents
    from pipelines import provenance as origins

    student = origins.is_student(config.cache) and config.pictures is None
    pipeline = origins if config.provenance or student else contents
    found = pipeline.run(config)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        pipeline.show(found)


@command(
    StatusConfig,
    examples="""
    unic-cache status cache
    unic-cache status s3://bucket/cache --watch
    unic-cache status cache --json | jq .left_s
    """,
)
@json_flag(help="Print JSON, one line for each look.")
def status(config: StatusConfig, as_json: bool) -> None:
    """Show how far extraction into CACHE is: units done and missing, rate, time left, workers seen.

    All of it comes from the cache: names of commit records, and the times that the store has of them. A unit is one
    tar under one view, for one teacher; those missing are what the same `extract` would make. Ctrl-C ends --watch.
    """
    from pipelines import status as pipeline

    pipeline.show(pipeline.run(config), as_json)


@command(
    VerifyConfig,
    examples="""
    unic-cache verify cache
    unic-cache verify cache --shards 'shards/*.tar' --pixel-check 500
    unic-cache verify cache --shards 'shards/*.tar' --teacher-check 32 --weights ibot=ibot.pth
    unic-cache verify cache --json | jq .broken
    unic-cache verify s3://bucket/cache --threads 32 --ray auto
    """,
)
@json_flag(help="Print JSON instead of text.")
def verify(config: VerifyConfig, as_json: bool) -> None:
    """Read all of CACHE and compare it with what was committed. Exit code 0: whole, 3: incomplete, 1: broken."""
    from pipelines import verify as pipeline

    report = pipeline.run(config)
    click.echo(json.dumps(report.to_json(), indent=1) if as_json else "\n".join(report.lines()))
    sys.exit(report.exit_code)


@command(RepairConfig, examples="unic-cache repair cache --dry-run\nunic-cache repair cache")
def repair(config: RepairConfig) -> None:
    """Un-commit what is broken in CACHE, so that `extract` makes it again. Stop all extraction into CACHE first."""
    from pipelines import repair as pipeline

    done = pipeline.run(config)
    click.echo("\n".join(done.lines(config.dry_run)))
    sys.exit(1 if done.left else 0)


@main.command(
    cls=Examples, examples="unic-cache teachers\nunic-cache teachers dinov2\nunic-cache teachers clip mit --json"
)
@click.argument("words", nargs=-1, metavar="[WORD]...")
@json_flag(help="Print JSON instead of a table.")
def teachers(words: tuple[str, ...], as_json: bool) -> None:
    """List the teachers known by name, those that match every WORD; any timm model is `timm:NAME`.

    docs/OWN_TEACHERS.md has those of transformers and open_clip, and modules of your own.
    """
    from unic_cache.teachers.listing import lines, matching, to_json

    with clear_errors():
        found = matching(words)
    click.echo(json.dumps([to_json(one) for one in found], indent=1) if as_json else "\n".join(lines(found)))


if __name__ == "__main__":
    main()
