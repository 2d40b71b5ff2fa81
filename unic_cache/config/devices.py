"""How --device names devices: one, several, or all of a machine's GPUs."""

from unic_cache.errors import ConfigError

ALL = "all"
SHARING = ("extract", "recode")  # the commands whose work several devices share


def device_names(text: str) -> tuple[str, ...]:
    """The devices that `text` lists. ConfigError for an empty name, a device twice, or a word among others.

    `cpu` may be repeated: each is a process of its own.
    """
    names = tuple(name.strip() for name in text.split(","))
    if len(names) == 1:
        return names
    plain = [f"{name}:0" if name == "cuda" else name for name in names]
    for name in plain:
        if name in {"", "auto", ALL}:
            raise ConfigError(f"device {text!r}: a list names each device once, as in cuda:0,cuda:1")
        if name != "cpu" and plain.count(name) > 1:
            raise ConfigError(f"device {text!r} lists {name} twice; name each device once")
    return names


def check_device(command: str, text: str, ray: str | None) -> None:
    """ConfigError if a command cannot use the devices that `text` names."""
    several = len(device_names(text)) > 1 or text == ALL
    if several and command not in SHARING:
        raise ConfigError(f"device {text!r}: {command} runs on one device; name one")
    if ray is not None and not ray.strip():
        raise ConfigError("--ray is empty; give a cluster's address, auto for the one of this machine, or local")
    if ray is not None and (several or ":" in text):
        raise ConfigError(f"device {text!r}: with --ray, Ray chooses each worker's device; give cuda, cpu or auto")
