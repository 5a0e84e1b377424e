"""What was saved comes back bit for bit, or it is said why not."""

import json
import os
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eotjax import parallel
from eotjax.errors import UserError
from eotjax.training import checkpoint, step
from eotjax.training.checkpoint import Checkpoints


def make_state(seed):
    """A state with numbers, tuples, empty nodes and two dtypes."""
    rng = np.random.default_rng(seed)
    params = {
        "w": jnp.float32(rng.normal(size=(4, 3))),
        "b": jnp.bfloat16(rng.random(5)),
    }
    state = step.init(
        params,
        step.make_optimizer(learning_rate=1.0, warmup_steps=1, total_steps=2).update,
    )
    return state._replace(step=jnp.int32(seed))


def abstract(state, sharding=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
    )


def assert_equal(a, b):
    def check(x, y):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))

    jax.tree.map(check, a, b)


def test_the_newest_state_comes_back_and_older_ones_make_room(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    assert checkpoints.latest_step() is None
    with pytest.raises(UserError, match=f"no checkpoint in {tmp_path / 'c'}"):
        checkpoints.restore(abstract(make_state(0)))
    for number in (3, 10, 20):
        checkpoints.save(number, make_state(number))
    checkpoints.close()
    kept = {path.name for path in (tmp_path / "c").iterdir() if path.is_dir()}
    assert kept == {"10", "20"}

    again = Checkpoints(tmp_path / "c", keep=2)
    assert again.latest_step() == 20
    layout = parallel.replicated(parallel.make_mesh())
    state = again.restore(abstract(make_state(0), layout))
    again.close()
    assert_equal(state, make_state(20))
    assert state.params["w"].sharding == layout


def test_a_state_may_be_overwritten_as_soon_as_saving_has_begun(tmp_path):
    state = jax.device_put({"w": jnp.arange(1e6)})
    expected = np.asarray(state["w"]).copy()
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state)
    overwrite = jax.jit(
        lambda x: jax.tree.map(lambda w: w * 0 - 1, x), donate_argnums=0
    )
    assert float(overwrite(state)["w"].max()) == -1
    checkpoints.close()
    again = Checkpoints(tmp_path, keep=1)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    restored = again.restore(
        {"w": jax.ShapeDtypeStruct((10**6,), "f4", sharding=device)}
    )
    again.close()
    np.testing.assert_array_equal(restored["w"], expected)


def test_an_unfinished_checkpoint_is_passed_over(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(1, make_state(1))
    checkpoints.close()
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    again = Checkpoints(tmp_path, keep=3)
    assert again.latest_step() == 1
    again.close()


def test_a_checkpoint_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=str(tmp_path / "file")):
        checkpoints = Checkpoints(tmp_path / "file" / "c", keep=1)
        checkpoints.save(1, make_state(1))
        checkpoints.close()


def test_a_tree_comes_back_and_replaces_the_one_before_it(tmp_path):
    for seed in (1, 2):
        checkpoint.save_tree(tmp_path / "tree", make_state(seed).params)
    found = checkpoint.load_tree(tmp_path / "tree", abstract(make_state(0).params))
    assert_equal(found, make_state(2).params)


# In a process of its own: orbax leaves the other reads of a failed load behind.
LOADS = """
import json, sys
import jax
from eotjax.training import checkpoint
from eotjax.errors import UserError

one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
def wanted(size):
    return {"w": jax.ShapeDtypeStruct((size,), "float32", sharding=one)}

def told(load, *arguments):
    try:
        load(*arguments)
    except UserError as error:
        return str(error)

folder, trees, name = sys.argv[1], sys.argv[2:-1], sys.argv[-1]
said = [told(checkpoint.load_tree, tree, wanted(1000)) for tree in trees]
said.append(told(checkpoint.load_tree, name, wanted(999)))
said.append(told(checkpoint.load_tree, name, {"v": wanted(1000)["w"]}))
checkpoints = checkpoint.Checkpoints(folder, keep=3)
said.append(told(checkpoints.restore, wanted(1000)))
print(json.dumps(said))
"""


def damage(folder):
    """Cuts every file of a folder in half."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_what_cannot_be_restored_is_named_with_a_way_out(tmp_path):
    tree = {"w": jnp.arange(1000.0)}
    for name in ("whole", "damaged"):
        checkpoint.save_tree(tmp_path / name, tree)
    checkpoints = Checkpoints(tmp_path / "c", keep=3)
    for number in (1, 2):
        checkpoints.save(number, tree)
    checkpoints.close()
    damage(tmp_path / "damaged")
    for number in (1, 2):  # damaged before their sums were known
        (tmp_path / "c" / str(number) / checkpoint.SUMS).unlink()
        damage(tmp_path / "c" / str(number))
    paths = [tmp_path / name for name in ("c", "missing", "damaged", "whole")]
    done = subprocess.run(
        [sys.executable, "-c", LOADS, *map(str, paths)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    missing, damaged, shape, names, newest = json.loads(done.stdout)
    assert f"parameters in {tmp_path / 'missing'}" in missing
    assert f"parameters in {tmp_path / 'damaged'}" in damaged
    for other in (shape, names):
        assert f"parameters in {tmp_path / 'whole'}" in other
    assert f"cannot restore {tmp_path / 'c' / '2'}" in newest
    assert f"remove {tmp_path / 'c'} to begin anew" in newest
    assert len(newest) < 500


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "flipped": lambda path: path.write_bytes(
        (data := path.read_bytes())[:-1] + bytes([data[-1] ^ 1])
    ),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damaged", list(DAMAGES.values()), ids=list(DAMAGES))
@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before_it(
    tmp_path, capsys, damaged, which
):
    checkpoints = Checkpoints(tmp_path / "c", keep=3)
    for number in (1, 2):
        checkpoints.save(number, make_state(number))
    checkpoints.close()
    files = [p for p in (tmp_path / "c" / "2").rglob("*") if p.is_file()]
    files = sorted(
        (p for p in files if p.name != checkpoint.SUMS and p.stat().st_size),
        key=lambda path: path.stat().st_size,
    )
    victim = files[-1 if which == "largest" else 0]
    damaged(victim)

    layout = parallel.replicated(parallel.make_mesh())
    others = Checkpoints(tmp_path / "c", keep=3, own=False)
    assert_equal(others.restore(abstract(make_state(0), layout)), make_state(1))
    others.close()
    assert "checkpoint 2 is damaged" in capsys.readouterr().out
    assert (tmp_path / "c" / "2").is_dir() and not (tmp_path / "c.damaged").exists()

    again = Checkpoints(tmp_path / "c", keep=3)
    state = again.restore(abstract(make_state(0), layout))
    assert_equal(state, make_state(1))
    assert again.latest_step() == 1
    said = capsys.readouterr().out
    assert "checkpoint 2 is damaged" in said and victim.name in said
    assert (tmp_path / "c.damaged" / "2").is_dir()
    again.save(2, make_state(20))  # the run comes by there once more
    again.close()
    newest = Checkpoints(tmp_path / "c", keep=3)
    assert_equal(newest.restore(abstract(make_state(0), layout)), make_state(20))
    newest.close()


def test_whole_checkpoints_of_another_network_are_left_alone(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=3)
    for number in (1, 2):
        checkpoints.save(number, {"w": jnp.arange(4.0)})
    checkpoints.close()
    again = Checkpoints(tmp_path / "c", keep=3)
    layout = parallel.replicated(parallel.make_mesh())
    with pytest.raises(UserError, match=f"cannot restore {tmp_path / 'c' / '2'}"):
        again.restore({"v": jax.ShapeDtypeStruct((4,), "float32", sharding=layout)})
    again.close()
    assert {p.name for p in (tmp_path / "c").iterdir()} >= {"1", "2"}
    assert not (tmp_path / "c.damaged").exists()


@pytest.mark.skipif(
    not os.path.isdir("/proc/self/fd"), reason="only Linux lists a process's files"
)
def test_saving_leaves_no_thread_and_no_file_open(tmp_path):
    """Else a run of some thousand checkpoints would come to its limit of files."""
    checkpoints = Checkpoints(tmp_path, keep=1)

    def used(number):
        checkpoints.save(number, make_state(number))
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    used_by = [used(number) for number in range(24)]  # the last save is under way
    checkpoints.close()
    (threads, files), (most_threads, most_files) = used_by[1], used_by[-1]
    assert most_threads < threads + 8 and most_files < files + 20, used_by
