"""1, 2, 4 and 8 devices, and one or two processes, take the same steps."""

import jax
import numpy as np
import optax
import pytest
from agreeing import assert_agree, described, make_state, trained
from processes import outputs

from eqdiff import train


@pytest.fixture(scope="module")
def alone():
    """One process on one device."""
    (found,) = outputs("import agreeing as a; out(a.described(*a.trained()))", count=1)
    return found


@pytest.mark.slow
def test_devices_agree(alone):
    ((found, memory),) = outputs(
        """
        import agreeing as a
        found, memory = {}, {}
        def run(name, mesh, **options):
            state, metrics = a.trained(mesh, **options)
            found[name] = a.described(state, metrics)
            memory[name] = train.memory_per_device(state)
            assert state.params["matrices"].sharding.mesh.size == mesh.size
        for n in (2, 4, 8):
            run(f"{n} devices", train.data_mesh(jax.devices()[:n]))
        run("8 devices, shards=8", train.data_mesh(shards=8))
        run("8 devices, shards=2, accumulate", train.data_mesh(shards=2), accumulate=2)
        run("4 devices, shards=4", train.data_mesh(jax.devices()[:4], shards=4))
        out([found, memory])
        """,
        count=1,
        devices=8,
    )
    for name, run in found.items():
        assert_agree(alone, run)
        shards = {"shards=8": 8, "shards=2": 2, "shards=4": 4}
        divisor = next((n for text, n in shards.items() if text in name), 1)
        np.testing.assert_allclose(
            memory[name], memory["2 devices"] / divisor, rtol=0.15, err_msg=name
        )


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_processes_agree(devices, alone):
    """Each with its own share, as the loader deals them."""
    one, other = outputs(
        """
        import agreeing as a
        found = [a.described(*a.trained(train.data_mesh(), index=index, count=count))]
        mesh = train.data_mesh(shards=jax.device_count())
        found.append(a.described(*a.trained(mesh, index=index, count=count, accumulate=2)))
        out(found)
        """,
        devices=devices,
    )
    assert one == other, "metrics and networks are the same in every process"
    for run in one:
        assert_agree(alone, run)


def test_processes_refuse_together(alone):
    """What one process cannot use is an error in all, and no state is lost."""
    for index, found in enumerate(
        outputs(
            """
            import agreeing as a
            from jax.sharding import NamedSharding, PartitionSpec
            mesh = train.data_mesh()
            step = train.make_step(a.loss_fn, a.OPTIMISER, mesh=mesh)
            state, said = a.make_state(), []
            x0, labels = a.share(index, count)
            def refused(x0, labels, state=state):
                try:
                    step(state, (x0, labels))
                except ValueError as error:
                    said.append(str(error))
            bad = labels.copy()
            bad[3] += 7 * index
            refused(x0, bad)
            state, metrics = step(state, (x0, labels))
            refused(x0, bad, state)
            refused(x0[: 8 - 2 * index], labels[: 8 - 2 * index], state)
            refused(x0[:0], labels, state)
            other = a.make_state()
            import equinox as eqx
            other = eqx.tree_at(lambda s: s.step, other, other.step + index)
            refused(x0, labels, other)
            try:
                train.make_step(a.loss_fn, a.OPTIMISER)
            except ValueError as error:
                said.append(str(error))
            # A global array is the global batch, in its own order.
            everything = NamedSharding(mesh, PartitionSpec())
            whole = [
                jax.make_array_from_callback(x.shape, everything, lambda i, x=x: x[i])
                for x in a.share()
            ]
            _, again = step(a.make_state(), tuple(whole))
            out([said, float(metrics.loss), float(again.loss)])
            """
        )
    ):
        (label, later, shapes, empty, state, mesh), loss, again = found
        where = "in process 1: " if index == 0 else ""
        for text in (label, later):
            assert text.startswith(f"{where}make_step: example 3: this MLP"), text
        assert "shares of different shapes" in shapes and "share their leading axis" in empty
        assert "begin with different states" in state and "data_mesh()" in mesh
        np.testing.assert_allclose([loss, again], alone["loss"][0], rtol=1e-6)


@pytest.mark.slow
def test_leaves_are_shared_too():
    mesh = train.data_mesh(shards=2)
    layout = train.Leaves()
    state, metrics = trained(mesh, layout=layout)
    one, expected = trained(layout=layout)
    assert_agree(described(one, expected), described(state, metrics))
    assert train.memory_per_device(state) < 0.6 * train.memory_per_device(one)


def test_what_a_compiled_step_costs(getkey):
    """Of a product of matrices it is known."""
    weight, optimiser = jax.random.normal(getkey(), (64, 64), "float32"), optax.sgd(1e-3)
    state = train.init(weight, optimiser, timesteps=make_state().timesteps, key=getkey())
    x0 = np.ones((32, 64, 64), np.float32)

    def loss_fn(net, t, x0, args, *, key):
        return ((x0 @ net) ** 2).mean(), {}

    products = 2 * 32 * 2 * 64**3
    for mesh in (None, train.data_mesh()):
        step = train.make_step(loss_fn, optimiser, mesh=mesh)
        cost = step.compile(state, (x0, None))
        assert products < cost.flops < 1.1 * products
        assert cost.peak_bytes > x0.nbytes / (1 if mesh is None else 2) and cost.seconds > 0
        before = step.compile(state, (x0, None)).seconds
        assert before < cost.seconds
        state, _ = step(state, (x0, None))
    steps = train.make_steps(loss_fn, optimiser)
    state = train.init(weight, optimiser, timesteps=make_state().timesteps, key=getkey())
    cost = steps.compile(state, (np.stack([x0, x0]), None))
    assert 2 * products < cost.flops < 2.2 * products


def test_shards_that_do_not_divide():
    with pytest.raises(ValueError, match="groups of 1, 2"):
        train.data_mesh(shards=3)
