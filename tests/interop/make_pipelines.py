"""Makes `pipelines.npz`, what diffusers' own pipelines sample with a formula for a network, and
`diffusers_run`, the folder of a training run with an average in several files of half precision.

    python -m venv fixtures
    fixtures/bin/pip install torch==2.13.0 diffusers==0.42.1 jax==0.10.2
    fixtures/bin/python tests/interop/make_pipelines.py

No test runs it. The loops are those of `DDPMPipeline` and `DDIMPipeline`; the noise of step i is
that of the i-th key of a sampler that is called with `jax.random.key(0)`.
"""

import json
import pathlib

import jax
import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.pipelines.ddim import pipeline_ddim
from diffusers.pipelines.ddpm import pipeline_ddpm
from diffusers.schedulers import scheduling_ddim, scheduling_ddpm
from diffusers.training_utils import EMAModel


HERE = pathlib.Path(__file__).parent
DDPM, DDIM = "DDPMPipeline", "DDIMPipeline"
LEARNED = dict(variance_type="learned_range")
# Pipeline, arguments of its call, scheduler, its options.
CASES = [
    (DDPM, dict(num_inference_steps=1000), "DDPMScheduler", {}),
    (DDPM, dict(num_inference_steps=10), "DDPMScheduler", dict(variance_type="fixed_large")),
    (DDPM, dict(num_inference_steps=30), "DDPMScheduler", dict(LEARNED, clip_sample_range=1.5)),
    (DDPM, dict(num_inference_steps=30), "DDPMScheduler", dict(timestep_spacing="trailing")),
    (
        DDPM,
        dict(num_inference_steps=12),
        "DDPMScheduler",
        dict(
            timestep_spacing="linspace",
            beta_schedule="squaredcos_cap_v2",
            prediction_type="v_prediction",
            variance_type="fixed_small_log",
            thresholding=True,
            sample_max_value=1.5,
        ),
    ),
    (DDPM, dict(num_inference_steps=20), "DDIMScheduler", {}),
    (DDIM, dict(num_inference_steps=50), "DDIMScheduler", {}),
    (DDIM, dict(num_inference_steps=50, eta=1.0), "DDPMScheduler", {}),
    (
        DDIM,
        dict(num_inference_steps=20, eta=0.5),
        "DDIMScheduler",
        dict(timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False),
    ),
    (
        DDIM,
        dict(num_inference_steps=30, eta=0.3),
        "DDIMScheduler",
        dict(timestep_spacing="trailing", prediction_type="sample", clip_sample_range=0.5),
    ),
    (
        DDIM,
        dict(num_inference_steps=30),
        "DDIMScheduler",
        dict(timestep_spacing="linspace", thresholding=True, sample_max_value=2.0),
    ),
    (
        DDIM,
        dict(num_inference_steps=15),
        "DDIMScheduler",
        dict(
            beta_schedule="scaled_linear",
            clip_sample=False,
            prediction_type="v_prediction",
            set_alpha_to_one=False,
        ),
    ),
]


class Config:
    sample_size, in_channels = 4, 2


class Formula(torch.nn.Module):
    """0.9 x + 0.3 sin(3 x + t / 200), and as a learned variance sin(x)."""

    config, dtype = Config(), torch.float32

    def __init__(self, learned):
        super().__init__()
        self.learned = learned

    def forward(self, x, t, return_dict=True):
        del return_dict
        out = 0.9 * x + 0.3 * torch.sin(3 * x + t / 200)
        self.sample = torch.cat([out, torch.sin(x)], 1) if self.learned else out
        return self


def run(pipeline, arguments, scheduler, options):
    """The prior noise, the final state before it is moved to [0, 1], and the configuration."""
    made = {"DDPMScheduler": DDPMScheduler, "DDIMScheduler": DDIMScheduler}[scheduler](**options)
    kind = {DDPM: DDPMPipeline, DDIM: DDIMPipeline}[pipeline]
    kind._execution_device = torch.device("cpu")
    pipe = kind.__new__(kind)
    pipe.unet = Formula(options.get("variance_type") == "learned_range")
    pipe.scheduler = made if pipeline == DDPM else DDIMScheduler.from_config(made.config)
    pipe.progress_bar = lambda times: times
    pipe.maybe_free_model_hooks = lambda: None
    x1 = np.random.default_rng(0).standard_normal((1, 2, 4, 4)).astype(np.float32)

    def noises():
        # The first is the prior's; then one for each step.
        yield x1
        for key in jax.random.split(jax.random.key(0), arguments["num_inference_steps"]):
            yield jax.random.normal(key, x1.shape[1:], np.float32)[None]

    drawn, states, step = noises(), [], pipe.scheduler.step
    for module in (pipeline_ddpm, pipeline_ddim, scheduling_ddpm, scheduling_ddim):
        module.randn_tensor = lambda shape, **_: torch.tensor(np.asarray(next(drawn)))

    def kept(*args, **kwargs):
        out = step(*args, **kwargs)
        states.append(out.prev_sample)
        return out

    pipe.scheduler.step = kept
    pipe(batch_size=1, output_type="pt", **arguments)
    return x1[0], states[-1][0].numpy(), json.loads(made.to_json_string())


def write_run():
    """As train_unconditional.py does, with options of both families of networks mixed."""
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(4, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        flip_sin_to_cos=True,
        freq_shift=0,
        downsample_padding=0,
        norm_eps=1e-3,
        norm_num_groups=2,
        attention_head_dim=4,
        time_embedding_dim=8,
    )
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
        parameter.data = parameter.data.half().float()
    folder = HERE / "diffusers_run"
    average = EMAModel(model.parameters(), model_cls=UNet2DModel, model_config=model.config)
    checkpoint = folder / "checkpoint-500" / "unet_ema"
    average.save_pretrained(checkpoint)
    (checkpoint / "diffusion_pytorch_model.safetensors").unlink()
    model.half().save_pretrained(folder / "weights", variant="fp16", max_shard_size="6KB")
    (folder / "weights" / "config.json").unlink()
    for path in (folder / "weights").iterdir():
        path.rename(checkpoint / path.name)
    (folder / "weights").rmdir()
    scheduler = DDIMScheduler(num_train_timesteps=50, timestep_spacing="trailing")
    model.float().eval()
    DDIMPipeline(unet=model, scheduler=scheduler).save_pretrained(folder)
    for path in (folder / "unet").iterdir():
        path.unlink()
    (folder / "unet").rmdir()
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 40])
    with torch.no_grad():
        out = model(x, t).sample
    np.savez_compressed(folder / "io.npz", x=x.numpy(), t=t.numpy(), out=out.numpy())


if __name__ == "__main__":
    arrays, said = {}, []
    for i, (pipeline, arguments, scheduler, options) in enumerate(CASES):
        arrays["x1"], arrays[f"sample{i}"], config = run(pipeline, arguments, scheduler, options)
        said.append(dict(pipeline=pipeline, scheduler=config, **arguments))
    np.savez_compressed(HERE / "pipelines.npz", cases=json.dumps(said), **arrays)
    write_run()
