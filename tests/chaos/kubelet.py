"""A client of an engine that is as patient as a kubelet."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import grpc

from tests.engine.cri import Cri
from tests.engine.handlers import RUNC, Handler
from tests.engine.namespaces import wait_until

AGAIN_S = 180.0

T = TypeVar("T")


class Kubelet(ABC):
    """Tries again what was refused. `told` is what it was told instead of an answer; logs lie in `directory`.

    Its pods are run by `handler`.
    """

    def __init__(self, directory: Path, handler: Handler = RUNC) -> None:
        self.directory = directory
        self.handler = handler
        self.told: list[str] = []
        self.may_forget_exec_codes = False
        """Whether an exec that is over before its start is may have an unknown exit code (ADR 0005)."""
        self.forgotten_exec_codes = 0

    @property
    @abstractmethod
    def cri(self) -> Cri:
        """The engine's client."""

    def insist(self, call: Callable[[], T]) -> T:
        """Call until the answer is another than "unavailable"; raises all other errors."""
        answers: list[T] = []

        def answered() -> bool:
            try:
                answers.append(call())
            except grpc.RpcError as error:
                self.refusal(error)
                return False
            return True

        wait_until(answered, timeout_s=AGAIN_S, what="another answer than unavailable", interval_s=0.1)
        return answers[0]

    def refusal(self, error: grpc.RpcError) -> None:
        """Note an "unavailable"; raises any other error."""
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise error
        self.told.append(f"{error.details()}"[:300])

    def remove_all_pods(self) -> None:
        """Remove every pod that the engine knows."""
        for pod in self.insist(self.cri.pods):
            self.insist(lambda pod=pod: self.cri.stop_pod(pod.id))  # type: ignore[misc]
            self.insist(lambda pod=pod: self.cri.remove_pod(pod.id))  # type: ignore[misc]
