"""What this server is tested with, for whoever tests an engine, a worker or a change of the server. docs/testing.md has
an example of each.

On virtual time, in one process:

* `engines`: engines that do what a script says, and an offload without threads. `payloads`: what workers send.
* `memory`: `memory_server`, a server from the gateway inwards. `virtual`: `virtual_server`, the whole one on a network
  in memory, with `network` (lines that take time, break and go dead) and `worker` (one that says anything).
* `heard`: what a worker was told. `leftovers`: what is left when it is gone.
* `conformance`: `check_engine`, the rules of cancellation held against anybody's engine.
* `ledger`: the contract held against what a worker said and heard.
* `simulation`: whole servers, with everything going wrong that can, from seeds. `clock` makes a run repeatable.

On real time, with real processes and sockets:

* `serve`: a server process with `faulty` engines. `tones`: what these hear and speak. `process` starts a server,
  `figures` says what it holds, `trend` whether that grows. `proxy`: a network that resets, stalls and slows.
"""
