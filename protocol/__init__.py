"""The wire: Engine.IO v4, Socket.IO v5 and the dubbing contract, free of I/O.

Bytes and text go in, events come out. Nothing here sleeps, reads a clock or touches a socket, so every rule can be
tested by calling it, and any event loop can carry it. From the transport upwards:

    engineio   frames <-> messages: handshake, heartbeat, closing
    packets    messages <-> Socket.IO packets: JSON and binary attachments
    socketio   packets <-> namespaces, events, acknowledgements
    dubbing    events <-> the contract's classes
"""
