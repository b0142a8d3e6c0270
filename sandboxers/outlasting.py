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
from common.process.fd_holders import FdHolders

JOURNAL_FILE = ".journal"
SERIALS_FILE = ".serials"
HOLDERS_FILE = ".fd-holders"

log = get_logger()


class Outlasting(NamedTuple):
    """One per daemon; `exit_log` is there under our own supervisor only, `holders` where descriptors are kept."""

    store: DescriptorStore
    journal: ConnectionJournal
    exit_log: ExitLog | None
    holders: FdHolders | None = None

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
        if self.holders is not None:
            self.holders.end_predecessors()

    def hold_no_longer(self) -> None:
        """Let our death end what is not kept: everything is that has to be."""
        if self.holders is not None:
            self.holders.end()


def open_outlasting(state_dir: str) -> Outlasting:
    """Take over what an earlier daemon with this state directory has left."""
    store = open_store(f"{state_dir}/{SERIALS_FILE}")
    exit_log = next((ExitLog(fd) for fd in store.take(EXIT_LOG_NAME)), None)
    holders = FdHolders(f"{state_dir}/{HOLDERS_FILE}") if store.keeps else None
    if holders is not None:
        holders.start()
    return Outlasting(store, ConnectionJournal(f"{state_dir}/{JOURNAL_FILE}", store), exit_log, holders)
