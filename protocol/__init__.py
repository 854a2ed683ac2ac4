"""The wire: Engine.IO v4, Socket.IO v5 and the dubbing contract, free of I/O.

Bytes and text go in, events come out. Nothing here sleeps, reads a clock or touches a socket, so every rule can be
tested by calling it, and any event loop can carry it. From the transport upwards:

    engineio   frames and HTTP bodies <-> messages: handshake, heartbeat, upgrade, closing
    socketio   messages <-> namespaces, events, acknowledgements, attachments, recovery
    dubbing    events <-> the contract's classes

`engineio` and `socketio` know nothing of dubbing, and `engineio` nothing of `socketio`.
"""
