"""A CUDA device that computes nothing and tells what the host asks of it; no GPU is needed.

    with FakeDevice() as fake:
        ...  # anything on fake.device
    assert fake.to_host == []

Tensors on `fake.device` are torch's fake tensors: shapes and dtypes without values. Tensors on the CPU stay real. An
operation that makes the host wait for a value (`.item()`, `bool(tensor)`, `nonzero`, a boolean index) raises
HostWaitsError, so the traceback shows the line; a copy to the device without non_blocking, for which torch waits until
the device's queue is empty, is listed in `blocking`. Backward needs FakeDevice("cpu"), where real tensors stand for the
device's: for tensors on cuda, torch's autograd engine asks the CUDA runtime for a stream.
"""

import sys
from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
VALUE_DEPENDENT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class HostWaitsError(AssertionError):
    """The host would wait here for a value on the device."""


class FakeDevice(TorchDispatchMode):
    """Inside, one can compute on `device`; the lists name copies as "dtype (shape)"."""

    def __init__(self, kind: str = "cuda") -> None:
        super().__init__()
        self.device = torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
        self.to_host: list[str] = []  # each copy gives ones
        self.to_device: list[str] = []
        self.blocking: list[str] = []  # of `to_device`
        self._around = ExitStack()

    def __enter__(self) -> Self:
        forget_tables()
        if self.device.type == "cuda":
            self._around.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._around.close()
        forget_tables()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        ours = [tensor for tensor in tensors if self._here(tensor.device)]
        target = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        if not ours and not (target and self._here(target)):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if waits(func, args):
            raise HostWaitsError(f"{func} on {[named(tensor) for tensor in tensors]}")
        copies = func in {aten._to_copy.default, aten.copy_.default}
        if copies and ours and not self._here(target or args[0].device):
            self.to_host.append(named(ours[0]))
            with unset_fake_temporarily():
                given = args[0] if func is aten.copy_.default else torch.empty(ours[0].shape, dtype=ours[0].dtype)
                return given.fill_(1).to(kwargs.get("dtype") or given.dtype)
        if copies and len(ours) < len(tensors):
            self.to_device.append(named(tensors[-1]))
            if not (kwargs.get("non_blocking") or args[2:] == (True,)):
                self.blocking.append(named(tensors[-1]))
        return func(*args, **kwargs)

    def _here(self, device: torch.device) -> bool:
        return device.type == self.device.type


def waits(func: Any, args: Any) -> bool:
    """Whether an operation needs values: to give them to the host, or to know the shape of its result."""
    if func in INDEXING:
        return any(index is not None and index.dtype in {torch.bool, torch.uint8} for index in args[1])
    return bool(VALUE_DEPENDENT & set(func.tags))


def named(tensor: Tensor) -> str:
    """Such as "float32 (8, 64)"."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def forget_tables() -> None:
    """Empty the package's caches: a table made once a device must be no fake one outside, and no real one inside."""
    for name, module in list(sys.modules.items()):
        if name.startswith("unic_cache"):
            for value in list(vars(module).values()):
                if hasattr(value, "cache_info"):
                    value.cache_clear()
