"""The values that options may take. Each tuple holds the keys, in order, of the table that dispatches on it.

`tests/test_choices.py` compares them with their tables; this file imports none, since every part may read it.
"""

CENTER = "center"  # the one recipe without randomness, for evaluation alone
RECIPES = ("unic", "light", CENTER)
DEFAULT_VIEWS = 5  # of each image: the fewest that held in the study, against a new one in every epoch
TRAINED_RECIPES = tuple(recipe for recipe in RECIPES if recipe != CENTER)
FITTED = "klt"  # the one codec with tables fitted to each teacher
DEFAULT_QUALITY, DEFAULT_CLS_QUALITY = 0.96, 0.99  # the mean cosines it aims for: they held in the study
FITTED_SETTINGS = ("quality", "cls_quality", "coder")
EXACT = 1.0  # the `cls_quality` of float16
CODECS = (FITTED, "f16", "int8", "int4")
LATTICE, RANDOM = "lattice", "random"
SAMPLINGS = (LATTICE, RANDOM)
CODERS = ("zstd", "pcodec")  # of klt's codes
PIXEL_CODECS = ("raw", "compact")
DTYPES = ("float32", "bfloat16", "float16")
PRECISIONS = ("no", "bf16", "fp16")
PROJECTORS = ("ladder", "last", "transformer")
LOSSES = ("unic", "am-radio")
BALANCINGS = ("batch", "image", "none")
STANDARDIZATIONS = ("channel", "phi-s", "none")
EXPORTS = ("timm", "hf", "onnx", "heads")
EVALUATION_TASKS = ("knn", "linear", "retrieval", "segmentation", "depth")
SOLVERS = ("lbfgs", "sgd")
TRACKERS = (  # accelerate's
    "tensorboard",
    "wandb",
    "mlflow",
    "comet_ml",
    "aim",
    "clearml",
    "dvclive",
    "swanlab",
    "trackio",
    "none",
)
