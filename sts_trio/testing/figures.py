"""What a server process holds: its own figures, as /metrics has them, and the system's, of Linux. Blocking."""

from __future__ import annotations

import urllib.request
from pathlib import Path

from attrs import frozen
from prometheus_client.parser import text_string_to_metric_families

from .process import ServerProcess


@frozen(kw_only=True)
class Figures:
    """What a server holds at one moment.

    Attributes:
        streams, connections, in_flight, busy_slots: the gauges that operators see.
        tasks, blocks: of trio, and of Python's memory; 0 where the server is not `testing.serve`.
        threads, fds, children, rss_bytes: as the system counts them.
    """

    streams: int
    connections: int
    in_flight: int
    busy_slots: int
    tasks: int
    blocks: int
    threads: int
    fds: int
    children: int
    rss_bytes: int

    @property
    def is_idle(self) -> bool:
        """Whether nobody is there and nothing is being done."""
        return not (self.streams or self.connections or self.in_flight or self.busy_slots or self.children)


def read_figures(server: ServerProcess) -> Figures:
    """
    Raises:
        OSError: the server does not answer, or is gone.
    """
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"{server.url}/metrics", timeout=10) as answer:
        values: dict[str, float] = {}
        for family in text_string_to_metric_families(answer.read().decode()):
            for sample in family.samples:
                values[sample.name] = values.get(sample.name, 0.0) + sample.value
    here = Path(f"/proc/{server.process.pid}")
    fields = dict(line.split(":", 1) for line in (here / "status").read_text().splitlines())
    return Figures(
        streams=int(values["sts_streams_active"]),
        connections=int(values["sts_connections"]),
        in_flight=int(values["sts_fragments_in_flight"]),
        busy_slots=int(values["sts_pool_busy_slots"]),
        tasks=int(values.get("sts_testing_tasks", 0)),
        blocks=int(values.get("sts_testing_allocated_blocks", 0)),
        threads=int(fields["Threads"]),
        fds=len(list((here / "fd").iterdir())),
        children=sum(len(_children(task).split()) for task in (here / "task").iterdir()),
        rss_bytes=int(fields["VmRSS"].split()[0]) * 1024,
    )


def _children(task: Path) -> str:
    try:
        return (task / "children").read_text()
    except FileNotFoundError:  # this thread has just ended
        return ""
