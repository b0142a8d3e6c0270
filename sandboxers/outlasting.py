"""What of a daemon outlasts it, whatever its type: descriptors in a store, requests in a journal, exits in a log."""

from __future__ import annotations

import os
from typing import NamedTuple

from common.descriptors.names import EXIT_LOG_NAME
from common.descriptors.notify import open_store
from common.descriptors.store import DescriptorStore
from common.journal import ConnectionJournal
from common.log import get_logger
from common.process.exit_log import ExitLog

JOURNAL_FILE = ".journal"
SERIALS_FILE = ".serials"

log = get_logger()


class Outlasting(NamedTuple):
    """One per daemon; `exit_log` is there under our own supervisor only."""

    store: DescriptorStore
    journal: ConnectionJournal
    exit_log: ExitLog | None

    def release_rest(self, *, keep: bool) -> None:
        """Let go of what nobody has taken up, unless it may belong to pods that this version does not understand."""
        self.journal.abandon_rest(keep)
        rest = self.store.untaken()
        if rest and not keep:
            for name in rest:
                for fd in self.store.take(name):
                    os.close(fd)
                self.store.remove(name)
            log.warning("descriptors.released", names=rest)


def open_outlasting(state_dir: str) -> Outlasting:
    """Take over what an earlier daemon with this state directory has left."""
    store = open_store(f"{state_dir}/{SERIALS_FILE}")
    exit_log = next((ExitLog(fd) for fd in store.take(EXIT_LOG_NAME)), None)
    return Outlasting(store, ConnectionJournal(f"{state_dir}/{JOURNAL_FILE}", store), exit_log)
