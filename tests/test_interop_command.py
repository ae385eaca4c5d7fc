"""`python -m eqdiff.interop`: converts, says what it found, and says what is wrong."""

import json
import pathlib
import shutil
import subprocess
import sys

import equinox as eqx
import pytest

import eqdiff as eqd
from eqdiff import interop
from eqdiff.interop.__main__ import main
from eqdiff.interop.score_sde._presets import SCORE_SDE_PRESETS
from eqdiff.nn._ends import unwrapped


FOLDER = pathlib.Path(__file__).parent / "interop"


def test_converts_and_says_what_it_found(tmp_path, capsys):
    output = tmp_path / "model.safetensors"
    assert main([str(FOLDER / "edm.pkl"), "--output", str(output)]) == 0
    said = capsys.readouterr().out
    for fact in (
        "a model of edm",
        "UNet(channels=4, channel_mult=(1, 1), num_res_blocks=1, attention_downsamples=(), ",
        "num_classes=3)",
        "process           EDMSDE(t0=0.002, t1=80.0)",
        "parameterisation  EDMPreconditioning(sigma_data=0.5)",
        "wrote",
    ):
        assert fact in said
    assert eqx.tree_equal(eqd.load_model(output), interop.load_edm(FOLDER / "edm.pkl"))
    before = output.read_bytes()
    assert main([str(FOLDER / "edm.pkl"), "--output", str(output)]) == 2
    assert "exists, and is not overwritten" in capsys.readouterr().err
    assert output.read_bytes() == before


@pytest.mark.parametrize("name", ["diffusers_ddpm", "diffusers_default"])
def test_folders_of_diffusers(name, tmp_path, capsys):
    output = tmp_path / "model.safetensors"
    assert main([str(FOLDER / name), "--output", str(output)]) == 0
    assert "a schedule of" in capsys.readouterr().out
    assert eqx.tree_equal(eqd.load_model(output), interop.load_diffusers(FOLDER / name))


def test_a_checkpoint_with_its_configuration(tmp_path, capsys):
    config = {
        "training": {"sde": "vesde", "continuous": True},
        "data": {"image_size": 8, "num_channels": 1, "centered": False},
        "model": SCORE_SDE_PRESETS["ve/cifar10_ncsnpp_continuous"]["model"]
        | dict(nf=4, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,)),
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(FOLDER / "flax_ncsnpp", tmp_path / "checkpoint_3")
    arguments = [str(tmp_path / "checkpoint_3"), "--config", str(tmp_path / "config.json")]
    assert main([*arguments, "--output", str(tmp_path / "model")]) == 0
    assert "VESDE(sigma_min=0.01, sigma_max=50.0" in capsys.readouterr().out
    loaded = eqd.load_model(tmp_path / "model")
    net = unwrapped(loaded.net)
    assert isinstance(net, eqd.nn.UNet) and net is loaded.net.net.net
    assert len(net.embed.time.frequencies) == 4


def test_flags(tmp_path, capsys, monkeypatch):
    seen = {}
    denoiser = interop.load_edm(FOLDER / "edm.pkl")

    def load(file, flags, *, preset):
        seen.update(file=file, flags=flags, preset=preset)
        return denoiser

    monkeypatch.setattr("eqdiff.interop.__main__.load_improved_diffusion", load)
    path = tmp_path / "ema_0.9999_200000.pt"
    path.write_bytes(b"x")
    arguments = [str(path), "--project", "improved-diffusion", "--flags"]
    assert main([*arguments, "image_size=64", "num_heads=4"]) == 0
    assert seen == dict(file=path, flags={"image_size": "64", "num_heads": "4"}, preset=None)
    assert main(arguments) == 0 and seen["flags"] == {}
    assert main([str(path), "--preset", "cifar10_uncond_50M_500K"]) == 0
    assert seen["flags"] is None and seen["preset"] == "cifar10_uncond_50M_500K"
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.pt"], "no file at nowhere.pt"),
        ([str(FOLDER / "zip.pt")], "zip.pt does not say who wrote it: give --project"),
        ([str(FOLDER / "zip.pt"), "--project", "guided-diffusion"], "none of the published files"),
        ([str(FOLDER / "zip.pt"), "--preset", "64x64_classifier"], "is a classifier"),
        (
            [str(FOLDER / "zip.pt"), "--preset", "64x64_diffusion"],
            "expected names and tensors alone",
        ),
        (
            [str(FOLDER / "zip.pt"), "--preset", "64x64_diffusion", "--flags", "a"],
            "written NAME=VALUE, got 'a'",
        ),
        ([str(FOLDER / "edm.pkl"), "--flags", "a=1"], "--flags is for files of OpenAI's scripts"),
        ([str(FOLDER / "edm.pkl"), "--preset", "x"], "but this is one of edm"),
        ([str(FOLDER / "edm.pkl"), "--config", "x"], "--config is for files of score_sde, but"),
        ([str(FOLDER / "edm.pkl"), "--variant", "x"], "--variant is for files of diffusers, but"),
        (
            [str(FOLDER / "diffusers_run"), "--project", "edm"],
            "is a folder, expected a file of edm",
        ),
        ([str(FOLDER / "edm.pkl"), "--project", "diffusers"], "is a file, expected the folder of"),
        (
            [str(FOLDER / "diffusers_ddpm" / "diffusion_pytorch_model.safetensors")],
            f"give its folder, {FOLDER / 'diffusers_ddpm'}.",
        ),
        (
            [str(FOLDER / "diffusers_ddpm"), "--scheduler", str(FOLDER)],
            "is a folder, expected a JSON file",
        ),
        (
            [str(FOLDER / "diffusers_run/checkpoint-500/unet_ema"), "--variant", "x"],
            "variants 'fp16', not of 'x'",
        ),
        (
            [str(FOLDER / "zip.pt"), "--project", "improved-diffusion"],
            "--flags alone for its defaults; or the name of a published file, --preset NAME.",
        ),
        (
            [str(FOLDER / "score_sde.pth"), "--config", "nowhere.json"],
            "--config nowhere.json is not there, expected a JSON file",
        ),
        (
            [str(FOLDER / "score_sde.pth"), "--config", str(FOLDER / "make_fixtures.py")],
            "make_fixtures.py is not JSON",
        ),
        (
            [str(FOLDER / "score_sde.pth"), "--config", "a.json", "--preset", "b"],
            "--preset and --config both say",
        ),
        (
            [str(FOLDER / "score_sde.pth")],
            "--config FILE.json, or the name of a published one, such as --preset ve/",
        ),
        (
            [str(FOLDER / "edm.pkl"), "--output", str(FOLDER / "edm.pkl" / "a")],
            "edm.pkl is a file.",
        ),
        (
            [str(FOLDER / "score_sde.pth")],
            "is not in a folder called like a published configuration",
        ),
        ([str(FOLDER / "object.pt"), "--project", "edm"], "object.pt"),
    ],
)
def test_what_is_wrong_is_said(arguments, message, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""


def test_flags_with_dashes_are_explained(capsys):
    arguments = [str(FOLDER / "zip.pt"), "--project", "improved-diffusion", "--flags"]
    with pytest.raises(SystemExit):
        main([*arguments, "--num_heads", "4"])
    assert (
        "--num_heads 4; --flags are written without dashes, NAME=VALUE" in capsys.readouterr().err
    )


def test_a_scheduler_of_its_own(tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(FOLDER / "diffusers_ddpm", folder)
    (folder / "scheduler_config.json").rename(tmp_path / "mine.json")
    assert main([str(folder)]) == 2
    assert "If you know it, give it: --scheduler FILE.json." in capsys.readouterr().err
    assert main([str(folder), "--scheduler", str(tmp_path / "mine.json")]) == 0
    assert "a schedule of 100 steps" in capsys.readouterr().out


def test_it_is_a_module(tmp_path):
    command = [sys.executable, "-m", "eqdiff.interop", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert (
        "python -m eqdiff.interop" in result.stdout
        and "Nothing in the file is executed" in result.stdout
    )
