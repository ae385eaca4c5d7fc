"""Two real processes on this machine, which agree before they act."""

from processes import outputs

from eqdiff.train import _processes


def test_agreement_of_two_processes():
    """Answers are those of all processes, in order, whoever comes first, from any thread."""
    found = outputs(
        """
        import threading, time
        import eqdiff.train._processes as p
        seen = []
        for n in range(20):
            if n % 3 == index:
                time.sleep(0.01)
            seen.append([
                p.any_process(n % 4 == index, "stop"),
                p.from_writer(f"{n} of {index}" if n % 2 else "", "run"),
                p.gather(f"{index}{n}" if n % 3 else "", "run"),
            ])
            p.barrier("run")
        other = threading.Thread(
            target=lambda: seen.append([p.any_process(index == 1, "thread") for _ in range(5)])
        )
        other.start()
        main = [p.any_process(False, "main") for _ in range(5)]
        other.join()
        out([seen, main, p.is_writer(), p.num_processes(), len(jax.devices())])
        """
    )
    expected = [
        [
            n % 4 in (0, 1),
            f"{n} of 0" if n % 2 else "",
            {"0": f"0{n}", "1": f"1{n}"} if n % 3 else {},
        ]
        for n in range(20)
    ]
    for index in range(2):
        assert found[index] == [[*expected, 5 * [True]], 5 * [False], index == 0, 2, 2]


def test_a_signal_is_heard_while_waiting():
    one, other = outputs(
        """
        import signal, threading, time
        import eqdiff.train._processes as p
        heard = []
        signal.signal(signal.SIGTERM, lambda *_: heard.append(time.monotonic()))
        if index == 0:
            threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        else:
            time.sleep(2)
        p.barrier("wait")
        out([len(heard), bool(heard) and time.monotonic() - heard[0] > 1])
        """
    )
    assert (one, other) == ([1, True], [0, False])


def test_one_process_agrees_with_itself():
    _processes.barrier("alone")
    assert _processes.is_writer() and _processes.num_processes() == 1
    assert [_processes.any_process(flag, "alone") for flag in (True, False)] == [True, False]
    assert _processes.from_writer("text", "alone") == "text"


def test_start_processes_says_what_to_write(monkeypatch):
    for name in ("SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    ((unknown, late),) = outputs(
        """
        said = []
        for _ in range(2):
            try:
                train.start_processes()
            except (ValueError, RuntimeError) as error:
                said.append(f"{type(error).__name__}: {error}")
            jax.devices()
        out(said)
        """,
        count=1,
    )
    assert unknown.startswith("ValueError") and "single process needs no call" in unknown
    assert late.startswith("RuntimeError") and "first line of main" in late
