"""EDM's augmentation: where pixels go, what the network is told, and that it resumes exactly."""

import jax
import numpy as np
import pytest

import eqdiff as eqd
from eqdiff import data
from eqdiff.data._geometry import transform


RNG = np.random.default_rng(0)
NONE = {"x_flip": 0.0, "y_flip": 0.0, "scale": 0.0, "turn": 0.0, "stretch": 0.0, "move": 0.0}
POSITIONS = np.arange(20_000)


def only(**factors):
    return data.EDMAugmentation(**{"p": 1.0, **NONE, **factors})


def affine(a, b=(0.0, 0.0)):
    matrix = np.eye(3)
    matrix[:2, :2], matrix[:2, 2] = a, b
    return matrix


@pytest.mark.parametrize("shape", ((1, 8, 8), (3, 5, 12), (2, 4, 7)))
def test_the_identity_gives_every_pixel_back(shape):
    image = RNG.normal(size=shape).astype(np.float32)
    assert np.abs(transform(image, np.eye(3)) - image).max() < 1e-5


@pytest.mark.parametrize("x, y", ((3, 0), (0, -2), (-4, 5)))
def test_whole_pixels_move_exactly(x, y):
    image = RNG.normal(size=(2, 9, 12)).astype(np.float32)
    moved = transform(image, affine(np.eye(2), (-x, -y)))
    around = np.pad(image, ((0, 0), (8, 8), (8, 8)), mode="reflect")
    assert np.abs(moved - around[:, 8 - y : 17 - y, 8 - x : 20 - x]).max() < 1e-5


@pytest.mark.parametrize("height, width", ((32, 32), (24, 40)))
def test_a_smooth_image_is_read_where_the_map_says(height, width):
    x = np.arange(width) - (width - 1) / 2
    y = np.arange(height)[:, None] - (height - 1) / 2

    def wave(x, y):
        return np.cos(0.31 * x - 0.17 * y + 0.4) + np.sin(0.1 * x + 0.28 * y)

    image = wave(x, y)[None].astype(np.float32)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        a, b = np.eye(2) + 0.3 * rng.normal(size=(2, 2)), 3 * rng.normal(size=2)
        there = [a[i, 0] * x + a[i, 1] * y + b[i] for i in range(2)]
        inside = (abs(there[0]) < width / 2 - 6) & (abs(there[1]) < height / 2 - 6)
        assert inside.sum() > 50
        error = (transform(image, affine(a, b))[0] - wave(*there))[inside]
        assert np.abs(error).max() < 0.02


def test_nothing_happens_at_p_0():
    images = RNG.normal(size=(50, 3, 8, 8)).astype(np.float32)
    augment = data.EDMAugmentation(p=0.0, x_flip=0.0)
    x, labels = augment(images.copy(), seed=0, positions=POSITIONS[:50])
    assert np.array_equal(x, images) and labels.shape == (50, 9) and not labels.any()


@pytest.mark.parametrize(
    "axis, factor, index", ((-1, {"x_flip": 0.5}, 0), (-2, {"y_flip": 1.0}, 1))
)
def test_mirror_images_are_exact_and_told(axis, factor, index):
    images = RNG.normal(size=(400, 1, 3, 4)).astype(np.float32)
    x, labels = only(**factor)(images.copy(), seed=0, positions=POSITIONS[:400])
    told = labels[:, index] == 1
    assert np.array_equal(x[~told], images[~told])
    assert np.array_equal(x[told], np.flip(images[told], axis))
    assert not np.delete(labels, index, axis=1).any() and set(labels[:, index]) == {0.0, 1.0}
    assert abs(told.mean() - 0.5) < 5 * 0.5 / 20


def test_maps_are_what_the_parameters_say():
    """Each change alone, from its parameters by its definition."""

    def drawn(**factor):
        inverse, labels = only(**factor).draw((3, 8, 16), seed=1, positions=POSITIONS[:200])
        return inverse[:, :2], labels.astype(np.float64)

    inverse, labels = drawn(scale=1.0)
    truth = 2 ** (-0.2 * labels[:, 2])
    assert np.allclose(inverse, truth[:, None, None] * np.eye(3)[:2], atol=1e-6)
    inverse, labels = drawn(turn=1.0)
    c, s = labels[:, 3] + 1, labels[:, 4]
    # What lies to the right (1, 0) of the result comes from below (y points down): anticlockwise.
    assert np.allclose(inverse[:, :, 0], np.stack([c, s], 1), atol=1e-6)
    assert np.allclose(inverse[:, :, 1], np.stack([-s, c], 1), atol=1e-6)
    inverse, labels = drawn(move=1.0)
    assert np.allclose(inverse[:, :, :2], np.eye(2))
    assert np.allclose(inverse[:, :, 2], labels[:, 7:] * [-16 / 8, -8 / 8], atol=1e-6)
    inverse, labels = drawn(stretch=1.0)
    amount = np.hypot(labels[:, 5], labels[:, 6])
    # Along the axis, whose y points up.
    axis = np.stack([labels[:, 5], -labels[:, 6]], 1) / amount[:, None]
    mapped = np.einsum("nij,nj->ni", inverse[:, :, :2], axis)
    factor = np.sum(mapped * axis, 1)
    assert np.allclose(mapped, factor[:, None] * axis, atol=1e-6)
    assert np.allclose(np.abs(np.log2(factor)), 0.2 * amount, atol=1e-6)
    assert np.allclose(np.linalg.det(inverse[:, :, :2]), 1)
    straight = labels[:, 6] == 0
    assert np.allclose(np.log2(factor[straight]), -0.2 * labels[straight, 5])


def test_changes_are_as_frequent_as_they_should_be():
    _, labels = data.EDMAugmentation(0.12).draw((3, 8, 8), seed=0, positions=POSITIONS)
    n = len(labels)

    def frequency(column, expected):
        happened = labels[:, column] != 0
        bound = 5 * np.sqrt(expected * (1 - expected) / n)
        assert abs(happened.mean() - expected) < bound, column
        return happened

    changes = [frequency(c, e) for c, e in enumerate((0.5, 0.06, *[0.12] * 4))]
    # Independent of each other and of the neighbour.
    for a, b in zip(
        changes[2:], (*changes[3:4], *changes[5:], changes[0], changes[2]), strict=True
    ):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(n)
        assert abs(np.corrcoef(a[1:], b[:-1])[0, 1]) < 5 / np.sqrt(n)
    axis = labels[changes[5]][:, 6] != 0
    assert abs(axis.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(axis))
    for column in (2, 7, 8):  # Standard normal.
        values = labels[labels[:, column] != 0][:, column].astype(np.float64)
        m = len(values)
        assert abs(values.mean()) < 5 / np.sqrt(m)
        assert abs(values.var() - 1) < 5 * np.sqrt(2 / m)


@pytest.mark.parametrize("threads", (0, 2))
def test_the_loader_carries_the_parameters_and_resumes(threads):
    images = RNG.integers(0, 256, (10, 3, 8, 8), np.uint8)

    def make(batch_size=6, **options):
        return data.loader(
            (images, np.arange(10)),
            batch_size,
            seed=4,
            augment=data.EDMAugmentation(0.2, x_flip=0.3),
            num_threads=threads,
            **options,
        )

    batches = make()
    next(batches)
    state = batches.get_state()
    truth = [next(batches) for _ in range(4)]
    resumed = make(12)
    resumed.set_state(state)
    for a, b in (truth[:2], truth[2:]):
        x, args = next(resumed)
        assert isinstance(args, eqd.nn.Conditions) and args.augment.shape == (12, 9)
        assert np.array_equal(x, np.concatenate([a[0], b[0]]))
        for mine, one, other in zip(args, a[1], b[1], strict=True):
            assert np.array_equal(mine, np.concatenate([one, other]))
        plain = ~args.augment.any(axis=1)
        assert np.array_equal(x[plain], data.normalise(images[args.class_label[plain]]))
        assert 0 < plain.sum() < 12
    with pytest.raises(ValueError, match=r"augment=EDMAugmentation\(p=0.2.*has augment=None"):
        data.loader((images, np.arange(10)), 6, seed=4).set_state(state)
    batches.close()
    resumed.close()


def test_networks_take_the_parameters(getkey):
    shape = eqd.nn.UNetShape(
        in_channels=3,
        out_channels=3,
        channels=32,
        num_res_blocks=1,
        channel_mult=(1,),
        augment_size=data.EDMAugmentation().size,
    )
    style = eqd.nn.styles.edm()
    net = eqd.nn.UNet(shape, style, eqd.nn.embeddings.edm(), key=getkey())
    images = RNG.integers(0, 256, (2, 3, 8, 8), np.uint8)
    augment = data.EDMAugmentation()
    x, args = next(data.loader(images, 2, seed=0, augment=augment))
    args = eqd.nn.Conditions(None, args.augment)

    def call(x, args):
        return net(np.float32(0.1), x, args)

    assert jax.eval_shape(jax.vmap(call), x, args).shape == x.shape


def test_what_cannot_be_augmented_is_refused():
    with pytest.raises(ValueError, match=r"images \(channels, height, width\).*\(1, 7\)"):
        data.loader(np.zeros((6, 1, 7)), 4, seed=0, augment=data.EDMAugmentation())
    with pytest.raises(ValueError, match="p=1.5: expected at least 0 and at most 1"):
        data.EDMAugmentation(1.5)
    with pytest.raises(ValueError, match="turn=-1.0: expected at least 0$"):
        data.EDMAugmentation(turn=-1.0)
