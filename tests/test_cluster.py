"""A real Ray cluster of several nodes on this machine: the same bytes, whatever is killed in mid-run."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from loom.artifact import Input, atomic_write
from loom.engine import RECEIPTS, Done, LocalEngine, Operation, Task
from loom.errors import LoomError

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = pytest.mark.slow


def load_model(settings: Mapping[str, Any]) -> str:
    """Leaves a file for each time it is loaded."""
    with atomic_write(Path(settings["log"]) / f"load-{os.getpid()}-{time.monotonic_ns()}"):
        pass
    return str(settings["suffix"])


def shout(suffix: str, task: Task, out: Path) -> Done:
    number = task.parameters["number"]
    match task.parameters.get("fault"):
        case "error":
            raise LoomError(f"task {number} cannot be done")
        case "crash":
            os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(task.parameters.get("seconds", 0))
    with atomic_write(out / task.outputs[0]) as stream:
        stream.write(f"{number}{suffix}".encode())
    (out / f"pid-{number}").write_text(f"{os.getpid()} {ray.get_runtime_context().get_node_id()}")
    return Done({task.outputs[0]: 1}, {"sum": number})


def operation(log: Path) -> Operation:
    log.mkdir(exist_ok=True)
    return Operation("shout", 1, shout, {"suffix": "!", "log": str(log)}, load_model)


def tasks(count: int, **parameters: Any) -> list[Task]:
    return [
        Task((Input(f"in-{i}", f"{i:032x}"),), (f"out-{i}.txt",), {"number": i, **parameters})
        for i in range(count)
    ]


def outputs(out: Path) -> int:
    return sum(path.suffix == ".txt" for path in out.iterdir()) if out.is_dir() else 0


def once(condition: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """Do something as soon as a condition holds, while the test goes on."""

    def watch() -> None:
        while not condition():
            time.sleep(0.005)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    made.add_node(num_cpus=1)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def engine(cluster: Any) -> Any:
    from loom.cluster import RayEngine

    return RayEngine(cluster.address)


def test_every_node_works_and_loads_its_model_once(engine: Any, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    results = engine.run(operation(log), tasks(12, seconds=0.05), out)
    assert [result.outputs[0].path for result in results] == [f"out-{i}.txt" for i in range(12)]
    assert [result.counters["sum"] for result in results] == list(range(12))
    alone = LocalEngine(1).run(
        Operation("shout", 1, _shout_here, {"suffix": "!", "log": str(log)}, load_model),
        tasks(12),
        tmp_path / "alone",
    )
    assert [result.outputs for result in results] == [result.outputs for result in alone]
    places = [(out / f"pid-{i}").read_text().split() for i in range(12)]
    assert len({node for _, node in places}) == 3
    loads = [name.split("-")[1] for name in os.listdir(log)]
    assert all(loads.count(pid) == 1 for pid, _ in places)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("out-*")}
    engine.run(operation(log), tasks(12, seconds=0.05), out)
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("out-*")} == before
    assert [path for path in (out / RECEIPTS).iterdir() if path.name.startswith(".")] == []


def _shout_here(suffix: str, task: Task, out: Path) -> Done:
    with atomic_write(out / task.outputs[0]) as stream:
        stream.write(f"{task.parameters['number']}{suffix}".encode())
    return Done({task.outputs[0]: 1}, {"sum": task.parameters["number"]})


def test_a_lost_worker_and_a_lost_node_lose_nothing(cluster: Any, engine: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extra = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()

    when = []

    def kill_a_worker() -> None:
        pid = next(out.glob("pid-*")).read_text().split()[0]
        os.kill(int(pid), signal.SIGKILL)
        when.append(outputs(out))

    def kill_a_node() -> None:
        cluster.remove_node(extra, allow_graceful=False)
        when.append(outputs(out))

    from loom.cluster import RayEngine

    killed = once(lambda: outputs(out) >= 3, kill_a_worker)
    removed = once(lambda: outputs(out) >= 8, kill_a_node)
    wide = RayEngine(cluster.address)
    results = wide.run(operation(tmp_path / "log"), tasks(30, seconds=0.3), out)
    killed.join(60)
    removed.join(60)
    assert wide.workers == 4
    assert len(when) == 2 and max(when) < 30  # both in mid-run
    assert [result.counters["sum"] for result in results] == list(range(30))
    assert [(out / f"out-{i}.txt").read_text() for i in range(30)] == [f"{i}!" for i in range(30)]


def test_a_mistake_is_told_and_what_kills_every_worker_is_named(engine: Any, tmp_path: Path) -> None:
    with pytest.raises(LoomError, match="task 0 cannot be done"):
        engine.run(operation(tmp_path / "log"), tasks(1, fault="error"), tmp_path / "a")
    with pytest.raises(LoomError, match=r"4 workers were lost over out-0.txt"):
        engine.run(operation(tmp_path / "log"), tasks(1, fault="crash"), tmp_path / "b")


def test_curation_on_a_cluster_that_loses_a_worker_has_the_bytes_of_one_core(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loom import cluster as module
    from loom.corpus.curate import curate
    from tests.corpus.test_curate import corpus, files_in, prose, recipe, tree, write

    rows = corpus() + [{"id": f"more{i}", "text": prose(i % 50, 120), "source": "s"} for i in range(200)]
    raw = write(tmp_path / "raw", rows, 6)
    curate(recipe(raw), tmp_path / "alone", LocalEngine(1))
    out = tmp_path / "out"
    started: list[int] = []
    answer = module._Pool._answer

    def note(self: Any, reference: Any, worker: Any, item: Any) -> Any:
        found = answer(self, reference, worker, item)
        started.extend([found] if item is None and found is not None else [])
        return found

    monkeypatch.setattr(module._Pool, "_answer", note)
    killed = once(lambda: files_in(out) >= 14, lambda: os.kill(started[0], signal.SIGKILL))
    curate(recipe(raw), out, engine)
    killed.join(60)
    assert not killed.is_alive()
    assert len(set(started)) <= 4  # three workers did every step, and at most one took the lost one's place
    assert tree(out) == tree(tmp_path / "alone")


def test_the_flag_reaches_the_cluster(cluster: Any, tmp_path: Path) -> None:
    from loom.cli import main
    from tests.corpus.test_curate import corpus, tree, write

    raw = write(tmp_path / "raw", corpus(), 3)
    for name, more in (("local", []), ("ray", ["--engine", "ray", "--address", cluster.address])):
        arguments = ["tag", "--documents", str(raw / "documents"), "--taggers", "c4_v2"]
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--out", str(tmp_path / name), *more])
        assert ended.value.code in (0, None)
    assert tree(tmp_path / "local") == tree(tmp_path / "ray")


def test_near_duplicates_and_tokens_made_on_a_cluster(engine: Any, tmp_path: Path) -> None:
    """The steps that work on partitions, not on files, and what is tokenized of them: byte for byte as here."""
    from loom.corpus.curate import curate
    from loom.tokens.tokenize import Tokenize, tokenize
    from tests.corpus.test_curate import recipe, tree, write
    from tests.corpus.test_near import NEAR, rows
    from tests.corpus.test_sample import bytes_tokenizer

    raw = write(tmp_path / "raw", rows(), 4)
    tokenizer = bytes_tokenizer(tmp_path / "tokenizer.json")
    for name, chosen in (("here", LocalEngine(2)), ("there", engine)):
        made = curate(recipe(raw, dedupe=NEAR), tmp_path / name, chosen)
        assert made.counters["sources"]["s"]["removed"]["near_duplicate"] > 20
        wanted = Tokenize((str(tmp_path / name),), tokenizer, held_out=0.2)
        tokenize(wanted, tmp_path / f"{name}-tokens", chosen)
    assert tree(tmp_path / "here") == tree(tmp_path / "there")
    shards = [
        {path.name: path.read_bytes() for path in (tmp_path / f"{name}-tokens").rglob("*.npy")}
        for name in ("here", "there")
    ]
    assert shards[0] == shards[1]
    assert shards[0]


def test_no_cluster_is_an_error_that_says_how_to_start_one() -> None:
    from loom.cli.engines import choose

    with pytest.raises(LoomError, match="the engines are: local, ray"):
        choose("spark", 2)
