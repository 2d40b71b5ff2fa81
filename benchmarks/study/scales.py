"""How large the study is: the same code on two CPU cores in hours, and on one GPU.

A scale fixes images, views, students and steps, so that its name stands for them in every line of results.jsonl.
"""

from dataclasses import dataclass

from benchmarks.study import student


@dataclass(frozen=True)
class Base:
    """The images and views of one float16 cache, from which all other caches of its runs are recoded."""

    name: str
    images: int  # trained on, at least: whole tars
    views: int  # of each, trained on
    unseen_views: int  # of each beyond those, for the held-out loss


@dataclass(frozen=True)
class Training:
    """A student and how it is trained; `patch_size` None is the model's own."""

    student: str
    img_size: int  # pixels
    patch_size: int | None  # pixels
    batch_size: int
    precision: str = "no"


@dataclass(frozen=True)
class Scale:
    """Everything that the plan leaves open."""

    name: str
    about: str
    teachers: tuple[str, ...]  # `start` among them has the claim's student's architecture
    start: str  # the teacher whose weights the claim's student starts from
    view_size: int  # pixels
    images: int  # packed for distillation
    labelled_images: int  # of each labelled set, at most; 0: all
    ablation: Base
    small: Training
    ablation_epochs: int  # of the paper's ablations, a new view in each
    ablation_lr: float
    lattice: int  # tokens: a quarter of every teacher's grid
    claim: Base
    large: Training
    claim_epochs: float
    started_lr: float  # of the student that starts from a teacher
    random_lr: float  # of the one that starts from random weights
    claim_seeds: tuple[int, ...]
    seeds: tuple[int, ...]  # of all other runs
    head_steps: int  # of a segmentation head


FIRST = "small"  # the scale of docs/STUDY.md
SCALES = {
    scale.name: scale
    for scale in (
        Scale(
            name=FIRST,
            about="two CPU cores, hours",
            teachers=("efficientnet-lite0@128", "vit-s-saliency@112", "hed-edges@64"),
            start="vit-s-saliency@112",
            view_size=128,
            images=6_500,
            labelled_images=2_000,
            ablation=Base("ablation", images=1_500, views=24, unseen_views=1),
            small=Training(student.NAME, img_size=64, patch_size=8, batch_size=64),
            ablation_epochs=8,
            ablation_lr=1e-3,
            lattice=16,
            claim=Base("claim", images=6_500, views=2, unseen_views=0),
            large=Training("vit_small_patch14_dinov2", img_size=112, patch_size=None, batch_size=32),
            claim_epochs=2,
            started_lr=1e-4,  # loss after 110 steps 0.387; at 3e-4 0.433, at 1e-3 0.492
            random_lr=5e-4,
            claim_seeds=(0, 1, 2),
            seeds=(0, 1),
            head_steps=5_000,
        ),
        Scale(
            name="full",
            about="one GPU, hours; written down, not run yet",
            teachers=("efficientnet-lite0@224", "vit-s-saliency@196", "hed-edges@224"),
            start="vit-s-saliency@196",
            view_size=224,
            images=6_500,  # of the 6,525 that the packages have
            labelled_images=0,
            ablation=Base("ablation", images=6_500, views=24, unseen_views=1),
            small=Training("vit_small_patch16_224", img_size=224, patch_size=16, batch_size=256, precision="bf16"),
            ablation_epochs=24,
            ablation_lr=1e-3,
            lattice=49,
            claim=Base("claim", images=6_500, views=10, unseen_views=0),
            large=Training("vit_small_patch14_dinov2", img_size=196, patch_size=None, batch_size=256, precision="bf16"),
            claim_epochs=50,
            started_lr=2e-4,
            random_lr=1e-3,
            claim_seeds=(0, 1, 2),
            seeds=(0, 1),
            head_steps=5_000,
        ),
    )
}
