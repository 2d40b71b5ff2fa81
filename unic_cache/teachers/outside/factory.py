"""Calls the factory of a py: name, so that nothing of it is left in the process but the module."""

import contextlib
import importlib
import inspect
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from unic_cache.errors import TeacherError
from unic_cache.teachers.spec import PY


def made(name: str, size: int | None) -> nn.Module:
    """What the factory gives, on the CPU. TeacherError if it cannot be imported or called, or gives no module."""
    place, _, attribute = name.removeprefix(f"{PY}:").partition(":")
    with _as_before():
        try:
            factory = getattr(importlib.import_module(place), attribute)
        except (Exception, SystemExit) as error:  # an import runs whatever the module holds
            raise TeacherError(
                f"teacher {name}: cannot import {attribute} of {place}: {type(error).__name__}: {error}"
            ) from error
        if size is not None and not _takes_size(factory):
            raise TeacherError(f"teacher {name}@{size}: its factory takes no argument `size`; leave out @{size}")
        try:
            module = factory() if size is None else factory(size=size)
            if isinstance(module, nn.Module):
                return module.to("cpu")
        except (Exception, SystemExit) as error:  # whatever a factory of someone's own raises
            raise TeacherError(f"teacher {name}: its factory fails: {type(error).__name__}: {error}") from error
        raise TeacherError(f"teacher {name}: its factory gives {type(module).__name__}, not a torch.nn.Module")


@contextlib.contextmanager
def _as_before() -> Iterator[None]:
    """Puts back what research code sets for a whole process; what it prints is no result and goes to stderr."""
    dtype, grad, device = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_default_device()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)  # None: no mode that wraps every call


def _takes_size(factory: Any) -> bool:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return False
    return "size" in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())
