"""oneDNN's convolutions and products, held to XLA's, in processes of one device."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import QUICKLY

SCRIPT = Path(__file__).parent / "one_device.py"
EXACT = [
    "same", "one pixel", "half", "half, as PyTorch pads", "unpadded", "dense", "network"
]  # fmt: skip

pytestmark = pytest.mark.skipif(
    sys.platform != "linux"
    or os.uname().machine != "x86_64"
    or shutil.which("g++") is None,
    reason="needs Linux on x86-64 and g++",
)


def run(*command, **environment):
    environment = os.environ | {"XLA_FLAGS": QUICKLY} | environment
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def found():
    done = run(SCRIPT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("what", EXACT)
def test_values_and_gradients_are_xlas_to_rounding(found, what):
    assert found[what] < 2e-5


def test_it_is_used_and_left_out_of_what_is_exported(found):
    assert found["used"]
    assert found["calls"] == [True, False]


def test_where_bfloat16_is_faster_its_factors_are_rounded_and_nothing_else(found):
    assert found["rounded factors"] < 2e-6


# Two pixels a side: without AVX-512 oneDNN then wants scratch memory.
ON_TWO_THREADS = """
import threading
import jax, jax.numpy as jnp, numpy as np
from eotjax.networks import kernels

jax.config.update("jax_cpu_enable_async_dispatch", False)  # computes where it is called
draw = lambda *shape: jax.random.normal(jax.random.key(0), shape)
loss = lambda *arrays: jnp.sum(kernels.conv(*arrays, 1, 1) ** 2)
gradients, found = jax.jit(jax.grad(loss, (0, 1))), []
arrays = draw(8, 2, 2, 64), draw(3, 3, 64, 64), jnp.zeros(64)
for _ in range(2):
    thread = threading.Thread(target=lambda: found.append(gradients(*arrays)))
    thread.start()
    thread.join()
jax.tree.map(np.testing.assert_array_equal, *found)
"""


def test_any_thread_may_call_what_another_has_made():
    done = run("-c", ON_TWO_THREADS, ONEDNN_MAX_CPU_ISA="AVX2")
    assert done.returncode == 0, done.stderr


def test_arrays_of_bfloat16_are_left_to_xla(found):
    assert found["bfloat16 arrays"] == "bfloat16"


USE = "from eotjax.networks import kernels; print(kernels.used())"


def test_without_a_compiler_one_sentence_says_so_and_xla_computes(tmp_path):
    done = run("-c", USE, XDG_CACHE_HOME=str(tmp_path), CXX="no-such-compiler")
    assert done.returncode == 0 and done.stdout.strip() == "False"
    (line,) = done.stderr.splitlines()
    assert "C++ compiler" in line and "Traceback" not in done.stderr


def test_what_cannot_be_compiled_is_told_by_its_first_line(tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'no such header' >&2\necho more >&2\nexit 1\n")
    compiler.chmod(0o755)
    done = run("-c", USE, XDG_CACHE_HOME=str(tmp_path), CXX=str(compiler))
    assert done.stdout.strip() == "False"
    (line,) = done.stderr.splitlines()
    assert "no such header" in line


def test_several_devices_are_left_to_xla():
    flag = "--xla_force_host_platform_device_count=2"
    done = run("-c", USE, XLA_FLAGS=flag)
    assert done.stdout.strip() == "False" and not done.stderr
