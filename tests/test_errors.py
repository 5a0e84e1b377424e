"""What a user does wrong is told in one sentence, by the real commands."""

import math
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT
from ml_collections import ConfigDict

from configs import default, folder, npz
from eotjax import UserError, train
from eotjax import command as commands
from eotjax.build import checks


def command(*arguments, module="main", devices=1, **variables):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        **variables,
    }
    done = subprocess.run(
        [sys.executable, "-m", f"eotjax.{module}", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "Traceback" not in said
    return said


def test_control_c_is_one_word_and_no_traceback(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        commands.exit_after(interrupted)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "eotjax: interrupted.\n"


def test_a_full_device_is_told_with_what_needs_less(capsys):
    def full():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory, 8 GiB.")

    with pytest.raises(SystemExit) as ended:
        commands.exit_after(full)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "8 GiB" in said and "smaller --batch_size" in said
    assert said.count("\n") == 1

    def other():
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    with pytest.raises(jax.errors.JaxRuntimeError):
        commands.exit_after(other)


def test_an_unknown_key_is_named_with_the_one_that_was_meant(tmp_path):
    said = command(
        "--config=configs/digits.py",
        "--config.data.chanels=3",
        f"--workdir={tmp_path}",
    )
    assert "--config.data.chanels" in said
    assert "channels" in said


@pytest.mark.parametrize(
    "option, told",
    [("--config.steps.most=3", "steps.most"), ("--config.data=3", "--config.data=3")],
)
def test_what_is_no_key_is_told_in_a_sentence(tmp_path, option, told):
    said = command("--config=configs/digits.py", option, f"--workdir={tmp_path}")
    assert told in said


@pytest.mark.parametrize("word", ["config.steps=7", "\N{EN DASH}config.steps=7", "7"])
def test_a_word_that_is_no_option_is_not_passed_over(tmp_path, word):
    run = tmp_path / "run"
    said = command("--config=configs/digits.py:smoke", word, f"--workdir={run}")
    assert f"{word!r} is no option" in said
    assert not run.exists()


@pytest.mark.parametrize(
    "mistake, told",
    [
        ("math.tau_", "AttributeError: module 'math' has no attribute 'tau_'"),
        ("None.tau", "AttributeError: 'NoneType' object has no attribute 'tau'"),
        ("{}['tau']", "KeyError: tau"),
        ("tau", "NameError: name 'tau' is not defined"),
        ("__import__('taus')", "ModuleNotFoundError: No module named 'taus'"),
        ("(", "SyntaxError: '(' was never closed"),
    ],
)
def test_a_mistake_in_a_config_of_ones_own_is_told_with_its_place(
    tmp_path, mistake, told
):
    own = tmp_path / "configs" / "own.py"
    own.parent.mkdir()
    own.write_text(f"import math\n\n\ndef get_config(_=''):\n    return {mistake}\n")
    said = command(f"--config={own}", f"--workdir={tmp_path}")
    assert f"{own}, line 5: {told}" in said


@pytest.mark.parametrize("address", [None, "here", "here:many"])
def test_processes_that_are_not_found_are_told_in_a_sentence(tmp_path, address):
    told = {} if address is None else {"JAX_COORDINATOR_ADDRESS": address}
    said = command(
        *("--config=configs/digits.py:smoke", f"--workdir={tmp_path}", "--distributed"),
        **told,
    )
    assert "cannot join the processes of --distributed" in said


def test_an_unknown_variant_is_answered_with_the_known(tmp_path):
    said = command("--config=configs/digits.py:bridg", f"--workdir={tmp_path}")
    assert "'bridg'" in said
    assert "cdiffe" in said


def test_a_missing_config_is_named(tmp_path):
    said = command("--config=configs/none.py", f"--workdir={tmp_path}")
    assert "configs/none.py" in said


def test_a_batch_that_eight_devices_cannot_share_is_refused(tmp_path):
    said = command(
        "--config=configs/digits.py:smoke",
        "--config.batch_size=12",
        "--config.coupling.group_size=12",
        f"--workdir={tmp_path}",
        devices=8,
    )
    assert "batch_size 12" in said
    assert "8 devices" in said


def test_a_missing_artefact_is_named(tmp_path):
    assert str(tmp_path / "none") in command(
        f"--export={tmp_path / 'none'}", module="evaluate"
    )


def refusal(config, workdir) -> str:
    with pytest.raises(UserError) as caught:
        train.train(config, workdir)
    assert "\n" not in str(caught.value)
    assert not (workdir / "config.json").exists(), "a refused run claims no folder"
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("coupling.group_size", 3, "neither divides"),
        ("coupling.epsilon", 0.0, "positive"),
        ("coupling.relative", "median", "mean"),
        ("coupling.method", "exact", "entropic"),
        ("estimator.name", "bridg", "cdiffe"),
        ("estimator.rho", 2.0, "0 to 1"),
        ("estimator.prediction", "score", "noise"),
        ("estimator.noise", "pink", "estimator.noise"),
        ("estimator.noise", "images", "only a bridge has noise like the images"),
        ("estimator.direction", "back", "forward, both"),
        ("estimator.condition_dropout", 1.0, "1 excluded"),
        ("sampling.guidance", 2.0, "condition_dropout"),
        ("refit.after", 2, "only a bridge of both directions"),
        ("refit.after", -1, "not be negative"),
        ("refit.every", -1, "not be negative"),
        ("refit.plan", 2.0, "in 0 to 1"),
        ("refit.copies", 0, "at least 1"),
        ("schedule.name", "linear", "vp_linear"),
        ("sampling.solver", "euler", "ddim"),
        ("model.dtype", "float16", "bfloat16"),
        ("model.multipliers", (1, 1, 1, 1, 1, 1), "multiple of 32"),
        ("model.attention", (5,), "height 5"),
        ("data.kind", "zip", "folder"),
        ("data.tint", True, "data.channels = 1"),
        ("data.image_size", (16,), "(height, width)"),
        ("data.crop_margin", -1, "negative"),
        ("model.multipliers", (), "one or more"),
        ("model.width", 2, "at least 4"),
        ("model.head_channels", 0, "at least 1"),
        ("estimator.moments", (1.0, 0.5), "three numbers"),
        ("estimator.moments", (1.0, 1.0, 1.5), "no images have"),
        ("estimator.spectrum", "any", "noise like the images"),
        ("seed", -1, "not be negative"),
        ("model.dropout", 1.0, "0 to 1"),
        ("schedule.sigma_min", 60.0, "below schedule.sigma_max"),
        ("schedule.log_snr_min", 20.0, "below schedule.log_snr_max"),
        ("schedule.beta_min", 30.0, "below schedule.beta_max"),
        ("microbatch", 3, "it must divide"),
        ("coupling.tau_source", 1.5, "in 0 to 1, not 0"),
        ("coupling.tau_target", 0.0, "in 0 to 1, not 0"),
        ("coupling.entropy", 1.0, "1 excluded"),
        ("coupling.threshold", 0.0, "positive"),
        ("coupling.max_marginal_error", -1.0, "positive"),
        ("sampling.restart", 0.5, "only a bridge has"),
        ("sampling.temperature", 0.5, "only a bridge has"),
        ("optimizer.learning_rate", math.nan, "give a number"),
        ("optimizer.learning_rate", -1.0, "not be negative"),
        ("optimizer.clip_norm", 0.0, "positive"),
        ("optimizer.ema_decay", 1.5, "1 excluded"),
        ("optimizer.final_fraction", -3.0, "in 0 to 1"),
        ("data.device_gib", -1.0, "negative"),
        ("data.channels", 2, "1 or 3"),
        ("steps", 2**31, "at most 2,147,483,647"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(tmp_path, key, value, expected):
    config = default.get_config("smoke")
    config.data.kind = "npz"
    config.data.path = str(tmp_path / "data.npz")
    config.data.image_size = (16, 16)
    config.model.attention = ()
    images = np.zeros((4, 16, 16, 3), np.uint8)
    np.savez(config.data.path, trainA=images, trainB=images, testA=images, testB=images)
    config.update_from_flattened_dict({key: value})
    assert expected in refusal(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sampling.restart": 1.0}, "it is a time"),
        ({"sampling.temperature": -0.1}, "not be negative"),
        ({"sampling.guidance": 2.0}, "from the way back"),
        ({"estimator.condition_dropout": 0.1}, "no condition to drop"),
        ({"coupling.cost": "pca", "estimator.epsilon": 0.0}, "set estimator.epsilon"),
        ({"estimator.noise": "images", "estimator.epsilon": 0.0}, "estimator.epsilon"),
        ({"coupling.entropy": 0.2, "coupling.tau_source": 0.9}, "of a balanced plan"),
        ({"coupling.entropy": 0.2, "coupling.method": "independent"}, "needs a plan"),
        ({"data.kind": "known_plan", "coupling.relative": "std"}, "a known plan has"),
        ({"latent.weights": "w", "latent.cache": "s3://b"}, "a folder of this machine"),
        ({"latent.weights": "w", "data.crop_margin": 4}, "whole cells"),
    ],
)
def test_values_that_contradict_each_other_are_refused(changes, expected):
    config = default.get_config("bridge")
    config.estimator.epsilon = 0.1
    checks.check_config(config, 1)
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=expected):
        checks.check_config(config, 1)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"coupling.cost": "pooled"}, "cannot be pooled"),
        ({"latent.weights": "w"}, "only images have latents"),
        ({"estimator.noise": "images"}, "no waves"),
    ],
)
def test_vectors_have_nothing_that_images_have(changes, expected):
    config = npz.get_config("vectors")
    checks.check_shape(config, (3,))
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=expected):
        checks.check_shape(config, (3,))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"coupling.method": "whole"}, "larger than a batch"),
        ({"coupling.draws": 2}, "larger than a batch"),
        ({"refit.after": 5}, "makes its own pairs"),
    ],
)
def test_what_needs_the_whole_sets_is_refused_where_they_are_streamed(
    changes, expected
):
    config = default.get_config("bridge")
    checks.check_coupling(config, False)
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=expected):
        checks.check_coupling(config, False)
    checks.check_coupling(config, True)


@pytest.mark.parametrize(
    "module, option", [("main", "--config=configs/digits.py:smoke"), ("translate", "")]
)
def test_a_device_that_cannot_be_had_is_told_in_a_sentence(
    trained, tmp_path, module, option
):
    arguments = {
        "main": [f"--workdir={tmp_path / 'run'}"],
        "translate": [
            *(f"--export={trained / 'export'}", f"--output={tmp_path / 'out'}"),
            f"--input={trained / 'samples'}",
        ],
    }[module]
    said = command(
        *filter(None, [option]), *arguments, module=module, JAX_PLATFORMS="cuda"
    )
    assert "JAX cannot use a device" in said and "JAX_PLATFORMS=cpu" in said


@pytest.mark.parametrize(
    "key",
    [
        *("estimator.name", "estimator.prediction", "schedule.name", "model.dtype"),
        *("sampling.solver", "coupling.cost", "coupling.method"),
    ],
)
def test_an_unknown_name_is_told_before_the_data_are_looked_for(tmp_path, key):
    config = folder.get_config("smoke")
    config.data.path = str(tmp_path / "none")
    config.update_from_flattened_dict({key: "no_such"})
    assert f"{key} is 'no_such'; it must be one of" in refusal(config, tmp_path / "run")


def test_a_missing_and_an_empty_folder_are_named(tmp_path):
    config = folder.get_config("smoke")
    assert "data.path" in refusal(config, tmp_path / "run")
    config.data.path = str(tmp_path / "data")
    assert str(tmp_path / "data" / "trainA") in refusal(config, tmp_path / "run")
    (tmp_path / "data" / "trainA").mkdir(parents=True)
    assert "holds no image" in refusal(config, tmp_path / "run")


def test_images_that_the_network_cannot_halve_are_refused(image_folder, tmp_path):
    config = folder.get_config("smoke")
    config.data.path, config.data.image_size = str(image_folder), (30, 30)
    said = refusal(config, tmp_path / "run")
    assert "30x30 cannot be halved 2 times" in said
    assert "multiple of 4" in said


def test_arrays_of_another_size_than_the_config_says_are_refused(tmp_path):
    config = npz.get_config("smoke")
    config.data.path = str(tmp_path / "data.npz")
    images = np.zeros((4, 28, 28, 1), np.uint8)
    np.savez(config.data.path, trainA=images, trainB=images, testA=images, testB=images)
    said = refusal(config, tmp_path / "run")
    assert "28x28x1" in said
    assert "data.image_size = (28, 28)" in said


def test_a_validation_share_that_leaves_nothing_to_train_on_is_refused(
    image_folder, tmp_path
):
    config = folder.get_config("smoke")
    config.data.path, config.data.validation = str(image_folder), 0.99
    assert "leaves none of the" in refusal(config, tmp_path / "run")


def test_vectors_are_not_tinted(vectors, tmp_path):
    config = vectors(data__tint=True, data__channels=1)
    assert "vectors have no colours" in refusal(config, tmp_path / "run")


def test_groups_count_only_where_plans_are_of_groups():
    config = folder.get_config("photos")
    config.batch_size = 24  # which does not fit group_size, 64
    checks.check_config(config, 1)
    config.coupling.method = "entropic"
    with pytest.raises(UserError, match="neither divides"):
        checks.check_config(config, 1)


def test_a_config_that_lacks_keys_is_refused_by_their_names():
    kept = folder.get_config("photos").to_dict()
    del kept["refit"], kept["sampling"]["restart"]
    with pytest.raises(UserError, match=r"no refit\.after, .*sampling\.restart: it is"):
        checks.check_config(ConfigDict(kept), 1)
