"""Convolutions and matrix products, on a CPU by oneDNN where it is installed.

XLA's own convolutions are several times slower on CPUs, and it does not use their
instructions for bfloat16, which are twice as fast (AVX-512 BF16) or ten times (AMX).
The extra `cpu` brings the library; kernels.cc, which hands it XLA's buffers, is
compiled at the first use. On one CPU device, and there alone; elsewhere, and in
`portable`, XLA's are used.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from eotjax import caches

LIBRARY = "onednn-cpu-gomp"
HEADERS = "onednn-devel-cpu-gomp"
SOURCE = Path(__file__).with_suffix(".cc")

_portable = False


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """What is traced within can be exported to other machines."""
    global _portable
    before, _portable = _portable, True
    try:
        yield
    finally:
        _portable = before


def used() -> bool:
    """Whether what is traced now is computed by oneDNN."""
    return not _portable and _library() is not None


def rounded() -> bool:
    """Whether factors are rounded to bfloat16: where the CPU multiplies those faster.

    As accelerators do by default, and unless `jax_default_matmul_precision` is set.
    """
    library = _library()
    asked = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return bool(library and library.EotjaxMultipliesBfloat16()) and asked is None


def conv(
    x: Float[Array, "b h w c_in"],
    kernel: Float[Array, "k k c_in c_out"],
    bias: Float[Array, "c_out"],
    stride: int,
    padding: int | str,
) -> Float[Array, "b h_out w_out c_out"]:
    """x * kernel + bias; padding as Flax's Conv has it, "SAME" or pixels a side."""
    strides = (stride, stride)
    sides = (
        jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
        if isinstance(padding, str)
        else [(padding, padding)] * 2
    )
    if not (used() and x.dtype == kernel.dtype == jnp.float32):
        y = jax.lax.conv_general_dilated(
            x, kernel, strides, sides, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + bias[None, None, None]
    return _conv(x, kernel, bias, strides, tuple(end for side in sides for end in side))


class Conv(nn.Module):
    """Flax's Conv of images, with square kernels, its parameters and their names."""

    features: int
    size: int
    stride: int = 1
    padding: int | str = "SAME"
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h_out w_out o"]:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = jnp.zeros(self.features)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = (
            jnp.asarray(array, self.dtype) for array in (x, kernel, bias)
        )
        return conv(x, kernel, bias, self.stride, self.padding)


def dot_general(
    lhs: Array, rhs: Array, dimension_numbers: tuple, **others: Any
) -> Array:
    """`jax.lax.dot_general`, as Flax's Dense calls it."""
    (left, right), batch = dimension_numbers
    count = len(left)
    plain = (
        batch == ((), ())
        and tuple(left) == tuple(range(lhs.ndim - count, lhs.ndim))
        and tuple(right) == tuple(range(count))
        and lhs.dtype == rhs.dtype == jnp.float32
    )
    if not (plain and used()):
        return jax.lax.dot_general(lhs, rhs, dimension_numbers, **others)
    outer, inner = lhs.shape[: lhs.ndim - count], rhs.shape[count:]
    rows = lhs.reshape(math.prod(outer), -1)
    return _matmul(rows, rhs.reshape(rows.shape[1], -1)).reshape(*outer, *inner)


Dense = functools.partial(nn.Dense, dot_general=dot_general)
DenseGeneral = functools.partial(nn.DenseGeneral, dot_general=dot_general)


def _factors(*arrays: Array) -> tuple[Array, ...]:
    """Arrays of float32 as they are multiplied: rounded once, for all products."""
    dtype = jnp.bfloat16 if rounded() else jnp.float32
    return tuple(array.astype(dtype) for array in arrays)


def _product(
    left: Array, right: Array, *, turn_left: bool = False, turn_right: bool = False
) -> Array:
    """left @ right, each turned (transposed) first if so asked."""
    shape = left.shape[int(turn_left)], right.shape[int(not turn_right)]
    call = _call("product", [shape], turn_left=turn_left, turn_right=turn_right)
    return call(left, right)[0]


@jax.custom_vjp
def _matmul(x: Array, w: Array) -> Array:
    return _product(*_factors(x, w))


def _matmul_forward(x, w):
    held = _factors(x, w)
    return _product(*held), held


def _matmul_backward(held, g):
    (x, w), (g,) = held, _factors(g)
    return _product(g, w, turn_right=True), _product(x, g, turn_left=True)


_matmul.defvjp(_matmul_forward, _matmul_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _conv(
    x: Array, kernel: Array, bias: Array, stride: tuple[int, int], ends: tuple[int, ...]
) -> Array:
    return _conv_forward(x, kernel, bias, stride, ends)[0]


def _conv_forward(x, kernel, bias, stride, ends):
    sides = (
        (x.shape[1 + i] + ends[2 * i] + ends[2 * i + 1] - kernel.shape[i]) // stride[i]
        for i in range(2)
    )
    shape = (len(x), *(side + 1 for side in sides), kernel.shape[-1])
    held = _factors(x, kernel)
    return _call("forward", [shape], **_windows(stride, ends))(*held, bias)[0], held


def _conv_backward(stride, ends, held, g):
    (x, kernel), (g,) = held, _factors(g)
    windows = _windows(stride, ends)
    return (
        *_call("to_input", [x.shape], **windows)(g, kernel),
        *_call("to_kernel", [kernel.shape, kernel.shape[-1:]], **windows)(x, g),
    )


_conv.defvjp(_conv_forward, _conv_backward)


def _windows(stride: tuple[int, ...], ends: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {"stride": np.array(stride, np.int64), "padding": np.array(ends, np.int64)}


def _call(
    name: str, shapes: list[tuple[int, ...]], **attributes: Any
) -> Callable[..., Sequence[Array]]:
    """A handler of kernels.cc, for results of float32 and these shapes."""
    call = jax.ffi.ffi_call(
        f"eotjax_{name}",
        [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
        vmap_method="sequential",
    )
    return functools.partial(call, **attributes)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The handlers, registered; None where they cannot be or are of no use."""
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return None
    # Its threads must not spin on the cores that XLA's need between two calls.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    try:
        library = ctypes.CDLL(str(_compiled()))
    except importlib.metadata.PackageNotFoundError:
        return None
    except (OSError, subprocess.CalledProcessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()[0]
        print(f"oneDNN is installed, but not used: {said}", file=sys.stderr)
        return None
    for name, handler in {
        "forward": library.EotjaxForward,
        "to_input": library.EotjaxToInput,
        "to_kernel": library.EotjaxToKernel,
        "product": library.EotjaxProduct,
    }.items():
        jax.ffi.register_ffi_target(
            f"eotjax_{name}", jax.ffi.pycapsule(handler), platform="cpu"
        )
    library.EotjaxMultipliesBfloat16.restype = ctypes.c_bool
    return library


def _compiled() -> Path:
    """kernels.cc as a shared library, compiled once for these versions."""
    library = _installed(LIBRARY, "libdnnl.so.3")
    headers = _installed(HEADERS, "dnnl.hpp").parent
    versions = (jax.__version__, importlib.metadata.version(LIBRARY), str(library))
    digest = hashlib.sha256(SOURCE.read_bytes() + repr(versions).encode())
    path = caches.folder() / "kernels" / f"{digest.hexdigest()[:16]}.so"
    if not caches.own(path.parent):
        raise PermissionError(f"others may write to {path.parent}")
    if path.exists():
        return path
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise FileNotFoundError("there is no C++ compiler (g++, or CXX)")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [compiler, "-std=c++17", "-O2", "-fPIC", "-shared", "-w"]
        command += [f"-I{jax.ffi.include_dir()}", f"-I{headers}", str(SOURCE)]
        command += [str(library), f"-Wl,-rpath,{library.parent}", "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        os.replace(made, path)
    return path


def _installed(package: str, name: str) -> Path:
    """A package's file of that name."""
    for file in importlib.metadata.files(package) or ():
        if file.name == name:
            return Path(str(file.locate())).resolve()
    raise FileNotFoundError(f"{package} has no {name}")
