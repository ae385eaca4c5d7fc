"""Files of ours that are damaged, part by part: each says what is wrong, as a ValueError."""

import json

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from test_serialise import metadata_of, mlp, PROCESSES, rewritten

import eqdiff as eqd


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format_version": ""}, r"its format version is '', expected a number"),
        ({"format_version": "new"}, r"its format version is 'new'"),
        ({"format_version": "-1"}, r"its format version is '-1'"),
        ({"format_version": "0"}, r"its format version is '0'"),
        ({"model": ""}, r"its description is not valid JSON"),
        ({"model": '{"net": {"class": '}, r"its description is not valid JSON"),
        ({"model": 10**5 * "["}, r"its description is not valid JSON"),
        ({"model": "[]"}, r"its description is not one of a model"),
        ({"model": "{}"}, r"its description is not one of a model"),
        ({"model": '{"tables": []}'}, r"its description lacks 'net'"),
        ({"model": '{"tables": [], "net": {}}'}, r"its description lacks 'class'"),
        ({"model": '{"tables": [], "net": {"class": "eqdiff.nn.MLP"}}'}, r"lacks 'arguments'"),
        ({"model": '{"tables": [], "net": {"class": 3, "arguments": {}}}'}, r"describes an object"),
    ],
)
def test_damaged_metadata(metadata, message, tmp_path):
    path = tmp_path / "model"
    eqd.save_model(path, eqd.Denoiser(mlp(), eqd.VPSDE()))
    rewritten(path, metadata=metadata)
    with pytest.raises(ValueError, match=message):
        eqd.load_model(path)


def changed(path, part, **arguments):
    """The file with other arguments of one of its parts."""
    model = json.loads(metadata_of(path)["model"])
    del model["checksums"]
    model[part]["arguments"] |= arguments
    rewritten(path, metadata={"model": json.dumps(model)})


def test_damaged_descriptions(tmp_path):
    path = tmp_path / "model"

    def message(part, process=PROCESSES["schedule"], **arguments):
        denoiser = eqd.Denoiser(mlp(), process, eqd.EDMPreconditioning(0.5))
        eqd.save_model(path, denoiser, overwrite=True)
        changed(path, part, **arguments)
        with pytest.raises(ValueError) as error:
            eqd.load_model(path)
        return str(error.value)

    # An argument that another version had.
    assert "describes a MLP that this version of eqdiff does not make" in message("net", gates=3)
    assert "describes a Schedule" in message("process", gamma=0.1)
    assert "the tensor process.gone is missing" in message(
        "process", betas={"tensor": "process.gone"}
    )
    assert "damaged" in message("variance", dtype={"dtype": "float33"})
    # What the class itself refuses.
    assert "positive finite number" in message("parameterisation", PROCESSES["vp"], sigma_data=-1.0)


def test_missing_metadata(tmp_path):
    path = tmp_path / "model"
    eqd.save_model(path, eqd.Denoiser(mlp(), eqd.VPSDE()))
    with safetensors.safe_open(path, "numpy") as file:
        metadata, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}
    for name, message in (
        ("format_version", "its format version is ''"),
        ("model", "its description is not the one that was saved"),
        ("format", "not one written by"),
    ):
        rest = {k: v for k, v in metadata.items() if k != name}
        safetensors.numpy.save_file(tensors, path, rest)
        with pytest.raises(ValueError, match=message):
            eqd.load_model(path)


def test_weights_of_another_kind_are_named(tmp_path):
    path = tmp_path / "model"
    eqd.save_model(path, eqd.Denoiser(mlp(), eqd.VPSDE()))
    rewritten(path, tensors={"net/linear_in.bias": np.zeros(8, np.int32)})
    with pytest.raises(ValueError, match=r"linear_in\.bias holds int32, expected float32"):
        eqd.load_model(path)


def test_any_damaged_byte_is_an_error_or_a_model(tmp_path):
    path = tmp_path / "model"
    eqd.save_model(path, eqd.Denoiser(mlp(), eqd.VPSDE()))
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    for at in rng.integers(0, header, 60):
        damaged = bytearray(whole)
        damaged[at] = int(rng.integers(0, 256))
        path.write_bytes(damaged)
        try:
            eqd.load_model(path)
        except ValueError:
            pass
