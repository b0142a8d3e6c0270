"""The network of a pod of the embedded engine: its namespace, and what attaches it."""

from __future__ import annotations

import dataclasses

from common.linux.netns import make_netns, remove_netns
from common.process.exits import ExitWatcher
from sandboxctl.embedded.cni import Network, load_network
from sandboxctl.embedded.plan import HOST_NETWORK, NO_NETWORK, PodPlan
from sandboxctl.embedded.records import PodRecord, ports_of


def planned_network(plan: PodPlan) -> dict[str, object]:
    """Return the CNI configuration that a plan asks for, empty where it needs none.

    :raise NotFound, InvalidArgument: there is no such network.
    """
    if plan.network in (HOST_NETWORK, NO_NETWORK):
        return {}
    return load_network(plan.network, plan.ports)


async def make_network(record: PodRecord, watcher: ExitWatcher) -> PodRecord:
    """Make what the record says that there will be, and return the record with what the plugins have answered.

    :raise NotFound, InvalidArgument, OSError: it cannot be made.
    """
    if record.netns:
        make_netns(record.netns)
    if not record.network:
        return record
    network = Network(record.network, watcher)
    attachment = await network.attach(record.pod_id, record.netns, ports_of(record))
    record = dataclasses.replace(record, attachment=attachment)
    record.save()
    return record


async def remove_network(record: PodRecord, watcher: ExitWatcher) -> list[str]:
    """Detach the pod and let go of its namespace; return what could not be undone. Idempotent."""
    failures = []
    if record.network:
        network = Network(record.network, watcher)
        failures = await network.detach(record.pod_id, record.netns, ports_of(record), record.attachment)
    if record.netns:
        remove_netns(record.netns)
    return failures
