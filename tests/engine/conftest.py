"""A real containerd for the tests, with the sandboxer next to it, and its logs in the report of a failure."""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.engine.cri import Cri, container_config, pod_config
from tests.engine.engine import Engine
from tests.engine.handlers import RUNC, Handler
from tests.engine.images import BUSYBOX
from tests.engine.parts import prepare
from tests.engine.qemu import write_config
from tests.guest_image import guest_image

EVIDENCE = pytest.StashKey[list[Callable[[], str]]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the ends of the engine's logs to a failure."""
    report = yield
    if report.failed:
        for collect in item.session.stash.get(EVIDENCE, []):
            report.sections.append(("engine", collect()))
    return report


@pytest.fixture(scope="session")
def parts() -> None:
    """Everything an engine is made of; without it these tests cannot run, and say why."""
    try:
        prepare("test", ["fetch-engine"], ["fetch-runtimes"], ["build-images", "wasm"])
    except (PermissionError, RuntimeError) as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def handler(request: pytest.FixtureRequest) -> Handler:
    """Whose pods a module is about: the `HANDLER` that it names, else those of runc."""
    return getattr(request.module, "HANDLER", RUNC)


@contextmanager
def _running(session: pytest.Session, handler: Handler) -> Iterator[Engine]:
    collectors = session.stash.setdefault(EVIDENCE, [])
    with Engine(handler) as engine:
        collectors.append(engine.evidence)
        try:
            engine.start()
            engine.start_sandboxer()
            yield engine
        finally:
            collectors.remove(engine.evidence)


@contextmanager
def running_vms(
    session: pytest.Session, changes: Mapping[str, Mapping[str, object]] | None = None
) -> Iterator[Engine]:
    """An engine whose sandboxer runs virtual machines, with changes to its usual configuration."""
    collectors = session.stash.setdefault(EVIDENCE, [])
    with Engine() as engine:
        collectors.append(engine.evidence)
        try:
            engine.start()
            engine.start_sandboxer(write_config(engine.directory, changes))
            yield engine
        finally:
            collectors.remove(engine.evidence)


@pytest.fixture(scope="session")
def vm_parts(parts: None) -> None:
    """Everything that VM pods need besides."""
    try:
        prepare("guest", ["fetch-vm-helpers"])
        guest_image()
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def vm_engine(vm_parts: None, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine whose sandboxer runs virtual machines; the tests of a module share it."""
    with running_vms(request.session) as engine:
        yield engine


@pytest.fixture(scope="module")
def engine(parts: None, handler: Handler, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine that the tests of a module share: they leave it as they found it."""
    with _running(request.session, handler) as engine:
        yield engine


@pytest.fixture
def own_engine(parts: None, handler: Handler, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine of the test's own, to restart and kill."""
    with _running(request.session, handler) as engine:
        yield engine


@pytest.fixture
def cri(engine: Engine) -> Iterator[Cri]:
    """The shared engine's client; every pod is removed afterwards."""
    yield engine.cri
    for pod in engine.cri.pods():
        engine.cri.stop_pod(pod.id)
        engine.cri.remove_pod(pod.id)


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A pod's log directory, which containerd makes."""
    return tmp_path / "pod-logs"


def start_container(
    cri: Cri, *command: str, handler: str = RUNC.name, image: str = BUSYBOX
) -> tuple[str, str]:
    """One host-network pod with one container; returns the ids of pod and container."""
    pod = pod_config()
    pod_id = cri.run_pod(pod, handler)
    container = cri.create(pod_id, container_config(command or ("sleep", "1000000"), image=image), pod)
    cri.start(container)
    return pod_id, container
