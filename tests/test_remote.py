"""Object storage: fsspec's in memory, and an emulator of S3 in a process of its own."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
import runs

import eotjax
from eotjax import remote, storage, translate
from eotjax.errors import UserError

URL = "memory://bucket/folder"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Goes to a machine of a name: each has a cache folder of its own."""

    def at(name):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))

    at("first")
    return at


@pytest.fixture
def there(machine):
    """A file system in memory, empty."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_local_path_is_itself(tmp_path):
    assert remote.fetched(tmp_path / "none") == tmp_path / "none"
    with remote.mirrored(tmp_path) as folder, remote.placing(tmp_path / "a") as file:
        assert (folder, file) == (tmp_path, tmp_path / "a")


def test_a_path_below_ones_home_is_not_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    assert remote.is_folder("~/run")
    assert remote.fetched(remote.below("~/run", "a")) == tmp_path / "run/a"
    with remote.mirrored("~/run") as folder, remote.placing("~/a") as file:
        assert (folder, file) == (tmp_path / "run", tmp_path / "a")


def test_a_name_that_only_begins_as_a_home_is_a_name_and_none_is_refused():
    assert remote.local("~no such user/photos") == Path("~no such user/photos")
    with pytest.raises(UserError, match="is a variable of the shell unset"):
        remote.local("")


def test_only_what_is_new_is_fetched(there, monkeypatch):
    there.pipe(
        {f"/bucket/folder/{name}": name.encode() for name in ("a", "b/c", "b/d")}
    )
    there.pipe("/bucket/folders/no", b"of another folder")
    folder = remote.fetched(URL)
    assert contents(folder) == {"a": "a", "b/c": "b/c", "b/d": "b/d"}

    got = []
    get = type(there).get

    def counted(self, names, *more, **options):
        got.extend(names)
        return get(self, names, *more, **options)

    monkeypatch.setattr(type(there), "get", counted)
    remote.fetched(URL)
    assert got == []
    there.pipe("/bucket/folder/b/c", b"new")
    there.pipe("/bucket/folder/e", b"e")
    there.rm("/bucket/folder/a")
    remote.fetched(URL)
    assert got == ["/bucket/folder/b/c", "/bucket/folder/e"]
    assert contents(folder) == {"b/c": "new", "b/d": "b/d", "e": "e"}
    (folder / "b/d").write_text("changed here")
    remote.fetched(URL)
    assert contents(folder)["b/d"] == "b/d"


def test_what_lies_below_a_folder(there, tmp_path):
    assert remote.below("memory://bucket/", "a") == "memory://bucket/a"
    assert remote.below(tmp_path, "a") == tmp_path / "a"
    assert remote.below("data", str(tmp_path)) == tmp_path  # as data's folders may be
    there.pipe("/bucket/a/x", b"")
    for folder in (remote.below("memory://bucket/", "a"), tmp_path):
        assert remote.is_folder(folder)
        assert not remote.is_folder(remote.below(folder, "none"))


def test_a_file_is_fetched_and_placed(there):
    with remote.placing("memory://bucket/x.npz") as path:
        path.write_text("one")
    assert remote.fetched("memory://bucket/x.npz").read_text() == "one"
    there.pipe("/bucket/x.npz", b"three")
    assert remote.fetched("memory://bucket/x.npz").read_text() == "three"


def test_a_folder_here_is_kept_alike_there(there, machine):
    with remote.mirrored(URL) as folder:
        (folder / "deep").mkdir()
        (folder / "deep/a").write_text("a")
        (folder / "b").write_text("b")
        (folder / ".0a.tmp").write_text("being written")
        (folder / "3.orbax-checkpoint-tmp").mkdir()
        (folder / "3.orbax-checkpoint-tmp/x").write_text("being written")
    machine("second")
    with remote.mirrored(URL) as folder:
        assert contents(folder) == {"deep/a": "a", "b": "b"}
        (folder / "b").unlink()
        (folder / "deep/a").write_text("changed")
    machine("third")
    assert contents(remote.fetched(URL)) == {"deep/a": "changed"}
    machine("first")  # whose own is older by now
    assert contents(remote.fetched(URL))["deep/a"] == "changed"


def test_a_folder_within_one_is_as_it_was_copied_last(there, machine):
    with remote.mirrored(URL) as run:
        (run / "export").mkdir()
        (run / "export/a").write_text("a")
        machine("second")
        with remote.mirrored(f"{URL}/export") as export:
            (export / "measured").write_text("of a")
        machine("first")
        (run / "export/a").unlink()
        (run / "export/b").write_text("b")
    machine("third")
    assert "b" in contents(remote.fetched(f"{URL}/export"))


def test_a_copy_that_was_cut_off_is_not_there(there, machine, monkeypatch, capsys):
    with remote.mirrored(URL) as folder:
        (folder / "a").write_text("a")

    def full(*args):
        raise OSError("no space")

    put = type(there).put_file
    with (
        pytest.raises(UserError, match=r"cannot copy .*\(no space\); the same"),
        remote.mirrored(URL) as folder,
    ):
        (folder / "b").write_text("b")
        (folder / "c").write_text("c")
        monkeypatch.setattr(
            type(there),
            "put_file",
            lambda self, here, path: (full if path[-1] == "c" else put)(
                self, here, path
            ),
        )
    monkeypatch.undo()
    assert there.exists("/bucket/folder/b")
    machine("second")
    assert contents(remote.fetched(URL)) == {"a": "a"}
    machine("first")  # has it all, and nobody has worked there since
    with remote.mirrored(URL) as folder:
        assert contents(folder) == {"a": "a", "b": "b", "c": "c"}
    machine("third")
    assert contents(remote.fetched(URL)) == {"a": "a", "b": "b", "c": "c"}


def test_a_file_that_was_fetched_in_part_is_not_taken_for_it(there, monkeypatch):
    with remote.mirrored(URL) as folder:
        (folder / "config").write_text("the whole of it")
    (folder / "config").unlink()  # but not what is known of it

    def cut_off(self, names, places, **_):
        for place in places:
            Path(place).write_text("the who")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(there), "get", cut_off)
        with pytest.raises(KeyboardInterrupt):
            remote.fetched(URL)
    assert contents(folder) == {}
    with remote.mirrored(URL) as folder:
        assert contents(folder) == {"config": "the whole of it"}
    assert there.cat("/bucket/folder/config") == b"the whole of it"


def test_half_of_what_vanishes_takes_no_place_there(there, machine, monkeypatch):
    """A checkpoint that is removed while it is copied, since a later one is whole."""
    put = type(there).put_file
    manifests = []

    def write_500(folder):
        (folder / "500").mkdir()
        for name in "ab":
            (folder / "500" / name).write_text(name)

    def make_way(self, here, path):
        """As training does: while 1000 is copied 2000 takes its place."""
        if path.endswith("1000/b"):
            folder = Path(here).parent.parent
            (folder / "2000").mkdir()
            for name in "ab":
                (folder / "2000" / name).write_text(name)
                (folder / "1000" / name).unlink()
        manifests.append(self.cat(f"/bucket/folder/{storage.MANIFEST}").decode())
        return put(self, here, path)

    with remote.mirrored(URL) as folder:
        write_500(folder)
    with remote.mirrored(URL) as folder:
        (folder / "1000").mkdir()
        for name in "ab":
            (folder / "1000" / name).write_text(name)
            (folder / "500" / name).unlink()
        monkeypatch.setattr(type(there), "put_file", make_way)
    assert len(manifests) == 4 and all("500/a" in x for x in manifests)
    machine("second")
    assert contents(remote.fetched(URL)) == {"2000/a": "a", "2000/b": "b"}
    assert not there.exists("/bucket/folder/1000/a")


def test_what_was_removed_does_not_come_back_after_a_kill(there, monkeypatch):
    with remote.mirrored(URL) as folder:
        for name in ("config", "4000", "5000"):
            (folder / name).write_text(name)
    with remote.mirrored(URL) as folder:
        (folder / "5000").unlink()
        (folder / "config").write_text("of more steps")
        remote.settle(folder)
        monkeypatch.setattr(storage.Copy, "push", lambda self: None)  # as if killed
    assert contents(remote.fetched(URL)) == {"config": "of more steps", "4000": "4000"}
    remote.settle(folder)  # of none that is kept alike now


def test_a_file_that_cannot_be_put_there_is_not_passed_over(there, monkeypatch):
    def refused(*_, **__):
        raise FileNotFoundError("no such folder there")

    with (
        pytest.raises(UserError, match="no such folder there"),
        remote.mirrored(URL) as folder,
    ):
        (folder / "a").write_text("a")
        monkeypatch.setattr(type(there), "put_file", refused)


def test_whoever_begins_last_owns_the_folder(there, machine, monkeypatch, capsys):
    told = []
    monkeypatch.setattr(os, "kill", lambda *args: told.append(args))
    monkeypatch.setattr(remote, "EVERY", 0.02)
    with (
        pytest.raises(UserError, match="another process works in memory://bucket"),
        remote.mirrored(URL) as first,
    ):
        machine("second")
        with remote.mirrored(URL) as second:
            (second / "a").write_text("second's")
            (first / "a").write_text("first's")
            latest = time.monotonic() + 60
            while not told and time.monotonic() < latest:
                time.sleep(0.01)
    assert told == [(os.getpid(), signal.SIGTERM)]
    for name in ("third", "first"):
        machine(name)
        assert contents(remote.fetched(URL)) == {"a": "second's"}
    assert "1 files that were written here, and not copied" in capsys.readouterr().out
    uncopied = remote.local(URL).with_name("folder.uncopied")
    assert contents(uncopied) == {"a": "first's"}


def test_what_is_written_is_copied_now_and_then(there, monkeypatch):
    monkeypatch.setattr(remote, "EVERY", 0.02)
    with remote.mirrored(URL) as folder:
        (folder / "a").write_text("a")
        until = time.monotonic() + 20
        while not there.exists("/bucket/folder/a") and time.monotonic() < until:
            time.sleep(0.01)
        assert there.cat("/bucket/folder/a") == b"a"


def test_mistakes_are_told_in_a_sentence(there, monkeypatch):
    with pytest.raises(UserError, match="there is nothing at memory://bucket/none"):
        remote.fetched("memory://bucket/none")
    with pytest.raises(UserError, match="cannot read what://x"):
        remote.fetched("what://x")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"cannot read gs://a/b .*gcs brings it\.$"):
        remote.fetched("gs://a/b")
    there.pipe("/bucket/folder/x/../../out", b"")
    with pytest.raises(UserError, match="a name that leads out of it"):
        remote.fetched(URL)


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """The environment of an emulator of S3 with a bucket of the name bucket."""
    port = runs.free_port()
    log = (tmp_path_factory.mktemp("s3") / "log").open("w")
    emulator = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stdout=log,
        stderr=log,
    )
    yield {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    emulator.terminate()
    emulator.wait()
    log.close()


@pytest.fixture
def bucket(s3, machine, monkeypatch):
    """The emulator's file system; of it, an empty bucket of the name bucket."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    until = time.monotonic() + 60
    while True:
        try:
            if files.exists("bucket"):
                files.rm("bucket", recursive=True)
            files.mkdir("bucket")
            return files
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.2)


SAVED = re.compile(rb"checkpoints/\d+/SHA256SUMS")
# The command, copying often.
MAIN = (
    "import runpy; from eotjax import remote; remote.EVERY = 0.2; "
    "runpy.run_module('eotjax.main', run_name='__main__', alter_sys=True)"
)


def test_a_run_in_a_bucket_is_as_on_disk(vectors, tmp_path, bucket, machine):
    keys = {"steps": 40, "log_every": 1, "checkpoint.every": 5, "sample_every": 10}
    config = vectors(**{name.replace(".", "__"): x for name, x in keys.items()})
    bucket.put_file(config.data.path, "bucket/vectors.npz")

    def command(workdir, path, name):
        return subprocess.Popen(
            [
                *(sys.executable, "-c", MAIN, f"--workdir={workdir}"),
                "--config=configs/npz.py:vectors,smoke",
                f"--config.data.path={path}",
                *(f"--config.{key}={value}" for key, value in keys.items()),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / name)} | runs.ON_TWO,
        )

    undisturbed = command(tmp_path / "run", config.data.path, "none")
    out, _ = undisturbed.communicate()
    assert undisturbed.returncode == 0, out

    place, data = "s3://bucket/runs/one", "s3://bucket/vectors.npz"
    killed = command(place, data, "killed")
    until, manifest = time.monotonic() + 300, f"bucket/runs/one/{storage.MANIFEST}"
    while killed.poll() is None and time.monotonic() < until:
        bucket.invalidate_cache()
        if bucket.exists(manifest) and SAVED.search(bucket.cat(manifest)):
            break  # a copy is whole that holds a checkpoint
        time.sleep(0.1)
    killed.kill()
    out, _ = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, out

    resumed = command(place, data, "resumed")
    out, _ = resumed.communicate()
    assert resumed.returncode == 0, out
    assert "going on from step" in out

    machine("fourth")
    here, there = tmp_path / "run", remote.fetched(place)
    jax.tree.map(
        np.testing.assert_array_equal, runs.left(config, here), runs.left(config, there)
    )
    points = np.zeros((3, 3), "f4")
    np.testing.assert_array_equal(
        eotjax.load(here / "export")(points), eotjax.load(f"{place}/export")(points)
    )


def test_a_folder_in_a_bucket_is_translated(
    trained, tmp_path, write_images, bucket, monkeypatch
):
    write_images(tmp_path / "images", 3)
    bucket.put(f"{trained}/export/", "bucket/model/", recursive=True)
    bucket.put(f"{tmp_path}/images/", "bucket/images/", recursive=True)

    def run(**places):
        arguments = [f"--{name}={place}" for name, place in places.items()]
        monkeypatch.setattr(sys, "argv", ["translate", *arguments])
        assert translate.run() == 0

    run(export=trained / "export", input=tmp_path / "images", output=tmp_path / "out")
    places = {name: f"s3://bucket/{name}" for name in ("images", "out")}
    run(export="s3://bucket/model", input=places["images"], output=places["out"])
    bucket.get("bucket/out/", f"{tmp_path}/brought/", recursive=True)
    names = {path.name for path in (tmp_path / "brought").iterdir()}
    assert names - {storage.MANIFEST} == {p.name for p in (tmp_path / "out").iterdir()}
    for path in (tmp_path / "out").glob("*.png"):
        brought = tmp_path / "brought" / path.name
        assert brought.read_bytes() == path.read_bytes()
