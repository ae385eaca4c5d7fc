"""Makes the files in this folder, with the packages whose formats they are in; no test runs it.

    python -m venv fixtures
    fixtures/bin/pip install torch==2.13.0 diffusers==0.42.1 safetensors flax==0.12.8
    fixtures/bin/python tests/interop/make_fixtures.py

Everything is small and random. The official code of score_sde and EDM is not here: the pickle of
EDM is made by stand-ins of its classes, and the Flax tree by modules written here
(`flax_modules.py`) with the names and the order of calls of score_sde's JAX code, which Flax itself
turns into names. `edm_shapes.json` lists the names and shapes of a small SongUNet, as
`eqdiff.interop.edm_state_dict` has them, and its buffers.
"""

import collections
import io
import json
import pathlib
import pickle
import sys
import types

import flax.serialization
import flax.traverse_util
import jax
import numpy as np
import torch
from flax_modules import DDPM, NCSNpp


HERE = pathlib.Path(__file__).parent
GOLDEN = HERE.parent / "golden"


def everything():
    """A value of every kind that a weights-only file may hold."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return collections.OrderedDict(
        float32=base,
        transposed=base.t(),
        strided=base[1:, 1::2],
        parameter=torch.nn.Parameter(torch.tensor([[1.5, -2.0]])),
        float64=torch.tensor([1e-300, 2.5], dtype=torch.float64),
        float16=torch.tensor([0.5, -65504.0], dtype=torch.float16),
        bfloat16=torch.tensor([1.5, -3e38], dtype=torch.bfloat16),
        int64=torch.tensor([2**40, -1]),
        int32=torch.tensor([7], dtype=torch.int32),
        int16=torch.tensor([-7], dtype=torch.int16),
        int8=torch.tensor([-128], dtype=torch.int8),
        uint8=torch.tensor([255], dtype=torch.uint8),
        bool=torch.tensor([True, False]),
        scalar=torch.tensor(3.25),
        empty=torch.zeros(0, 3),
        plain=[1, 2.5, "text", None, True, (1, -(2**70)), b"bytes", {"a": {1: 2}}],
        size=torch.Size([2, 3]),
        device=torch.device("cpu"),
        numpy=np.float64(0.1),
    )


def write_torch():
    value = everything()
    torch.save(value, HERE / "zip.pt")
    torch.save(value, HERE / "legacy.pt", _use_new_zipfile_serialization=False)
    # A training state of score_sde_pytorch: the average has no names, and the model has those of
    # data-parallel training.
    state = {
        "module.all_modules.0.W": torch.tensor([1.0, 2.0]),
        "module.all_modules.1.weight": torch.arange(6.0).reshape(2, 3),
        "module.all_modules.1.bias": torch.zeros(2),
        "module.sigmas": torch.ones(4, dtype=torch.float64),
    }
    shadow = [torch.arange(6.0).reshape(2, 3) + 1, torch.ones(2)]
    ema = {"decay": 0.999, "num_updates": 7, "shadow_params": shadow}
    torch.save(
        {"optimizer": {"state": {}, "param_groups": []}, "model": state, "ema": ema, "step": 7},
        HERE / "score_sde.pth",
    )
    # A whole module, which no weights-only file is.
    torch.save(torch.nn.Linear(1, 1), HERE / "object.pt")


def write_big_endian():
    """As a machine with the other order of bytes would have written it."""
    import zipfile

    data = io.BytesIO()
    torch.save({"a": torch.tensor([1.0, -2.5]), "b": torch.tensor([1, 258])}, data)
    with zipfile.ZipFile(data) as old, zipfile.ZipFile(HERE / "big_endian.pt", "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if info.filename.endswith("byteorder"):
                content = b"big"
            elif "/data/" in info.filename:
                size = 8 if info.filename.endswith("/1") else 4
                content = np.frombuffer(content, f"u{size}").byteswap().tobytes()
            new.writestr(info.filename, content)


# NVIDIA's persistence in short: an object is pickled as one call, with its class's name and source
# and its attributes.
SOURCE = "raise RuntimeError('the source in the file was run')"


def reconstruct(meta):
    raise NotImplementedError


class Persistent(torch.nn.Module):
    def __init__(self, class_name, kwargs):
        super().__init__()
        self._class_name, self._init_args, self._init_kwargs = class_name, (), kwargs

    def __reduce__(self):
        state = {k: v for k, v in self.__dict__.items() if k != "_class_name"}
        meta = dict(
            type="class", version=6, module_src=SOURCE, class_name=self._class_name, state=state
        )
        return reconstruct, (meta,)


def persistent(class_name, kwargs, tree, buffers=()):
    """A module of persistent ones that has a flat state dict's tensors at their places."""
    module = Persistent(class_name, kwargs)
    for name, value in tree.items():
        if isinstance(value, dict):
            # The containers in EDM's networks are PyTorch's own.
            child = (
                torch.nn.ModuleDict()
                if name in ("enc", "dec")
                else Persistent("Layer", {"init_weight": np.float64(0.5)})
            )
            filled = persistent("Layer", {}, value)
            child._modules, child._parameters, child._buffers = (
                filled._modules,
                filled._parameters,
                filled._buffers,
            )
            if name == "model":
                child._class_name = kwargs["model_type"]
            module._modules[name] = child
        elif name in ("resample_filter", "freqs", "u"):
            module.register_buffer(name, value)
        else:
            module.register_parameter(name, torch.nn.Parameter(value))
    return module


def nested(flat):
    tree = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        at = tree
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    return tree


def write_edm():
    persistence = types.ModuleType("torch_utils.persistence")
    sys.modules["torch_utils"], sys.modules["torch_utils.persistence"] = (
        types.ModuleType("torch_utils"),
        persistence,
    )
    reconstruct.__module__, reconstruct.__qualname__ = (
        "torch_utils.persistence",
        "_reconstruct_persistent_obj",
    )
    reconstruct.__name__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = reconstruct
    rng = np.random.default_rng(0)
    kwargs = dict(
        img_resolution=8,
        img_channels=1,
        label_dim=3,
        use_fp16=False,
        sigma_min=0,
        sigma_max=float("inf"),
        model_type="SongUNet",
        model_channels=4,
        channel_mult=[1, 1],
        num_blocks=1,
        attn_resolutions=[],
        embedding_type="fourier",
        encoder_type="residual",
        channel_mult_noise=2,
        resample_filter=[1, 3, 3, 1],
        dropout=0.1,
    )
    shapes = json.loads((HERE / "edm_shapes.json").read_text())
    taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32) / 64
    flat = {}
    for name, shape in shapes.items():
        if name.endswith("resample_filter"):
            flat[f"model.{name}"] = torch.tensor(taps)[None, None]
        else:
            flat[f"model.{name}"] = torch.tensor(
                rng.standard_normal(shape).astype(np.float32) * 0.3
            )
    ema = persistent("EDMPrecond", kwargs, nested(flat)).eval().requires_grad_(False)
    loss = Persistent("EDMLoss", {})
    data = dict(
        ema=ema, loss_fn=loss, augment_pipe=None, dataset_kwargs=dict(path="x.zip", max_size=None)
    )
    with open(HERE / "edm.pkl", "wb") as file:
        pickle.dump(data, file)


def write_diffusers():
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

    # Like google/ddpm-cifar10-32, smaller; and like diffusers' defaults, with heads.
    common = dict(
        sample_size=8, in_channels=2, out_channels=2, layers_per_block=1, norm_num_groups=2
    )
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    song = dict(
        flip_sin_to_cos=False,
        freq_shift=1,
        downsample_padding=0,
        norm_eps=1e-6,
        attention_head_dim=None,
    )
    openai = dict(
        attention_head_dim=4,
        attn_norm_num_groups=2,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=3,
    )
    for name, widths, options, scheduler in (
        (
            "diffusers_ddpm",
            (4, 8),
            song,
            DDPMScheduler(num_train_timesteps=100, variance_type="fixed_large"),
        ),
        (
            "diffusers_default",
            (8, 8),
            openai,
            DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
        ),
    ):
        torch.manual_seed(0)
        model = UNet2DModel(
            **common, **options, block_out_channels=widths, down_block_types=down, up_block_types=up
        )
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        folder = HERE / name
        # One in each format, and in half precision, which is half the size.
        model.half().save_pretrained(folder, safe_serialization=name == "diffusers_ddpm")
        model.float().eval()
        scheduler.save_pretrained(folder)
        x = torch.randn(2, 2, 8, 8)
        t, y = torch.tensor([3, 70]), torch.tensor([2, 0])
        extra = {} if name == "diffusers_ddpm" else {"class_labels": y}
        with torch.no_grad():
            out = model(x, t, **extra).sample
        np.savez_compressed(
            folder / "io.npz",
            x=x.numpy(),
            t=t.numpy(),
            y=y.numpy(),
            out=out.numpy(),
            betas=scheduler.betas.numpy(),
        )


def write_flax():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 8, 8, 1)).astype(np.float32)
    sigma = np.array([0.05, 7.0], np.float32)
    net = NCSNpp()

    def noisy(a):
        # Half precision is enough, and half the size.
        return np.asarray(a + 0.1 * rng.standard_normal(a.shape), np.float16)

    params = jax.tree.map(noisy, net.init(jax.random.key(0), x, sigma)["params"])
    wide = jax.tree.map(lambda a: a.astype(np.float32), params)
    out = np.asarray(net.apply({"params": wide}, x, sigma))
    state = dict(
        step=np.int32(7), lr=2e-4, model_state={}, ema_rate=0.999, rng=np.zeros(2, np.uint32)
    )
    state |= dict(optimizer={"target": {}, "state": {"step": np.int32(7)}}, params_ema=params)
    # Small chunks, so that some arrays are cut.
    flax.serialization.MAX_CHUNK_SIZE = 1000
    (HERE / "flax_ncsnpp").write_bytes(flax.serialization.msgpack_serialize(state))
    np.savez_compressed(HERE / "flax_ncsnpp.npz", x=x, told=sigma, out=out)


def write_flax_names():
    """Which of Flax's names is which of PyTorch's, for the golden `public_score_ddpm`.

    Both number layers as they are made, and make them in one order; Flax's dictionaries keep it.
    """
    x = np.zeros((1, 16, 16, 3), np.float32)
    params = DDPM().init(jax.random.key(0), x, np.zeros(1, np.float32))["params"]
    inner = {"kernel": "weight", "scale": "weight"}
    names = {}
    for number, (module, tree) in enumerate(params.items()):
        for path, _ in flax.traverse_util.flatten_dict(tree).items():
            *layers, last = path
            theirs = [f"all_modules.{number}", *layers, inner.get(last, last)]
            names["/".join([module, *path])] = ".".join(theirs)
    (HERE / "flax_ddpm.json").write_text(json.dumps(names, indent=0) + "\n")


if __name__ == "__main__":
    write_torch()
    write_big_endian()
    write_edm()
    write_diffusers()
    write_flax()
    write_flax_names()
    for path in sorted(HERE.rglob("*")):
        if path.is_file():
            print(f"{path.stat().st_size:>8}  {path.relative_to(HERE)}")
