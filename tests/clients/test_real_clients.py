"""Real, unmodified client libraries in their default settings and others: they just work, and none hangs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest

from . import npm
from .meeting import Meeting

pytestmark = pytest.mark.slow

JAVASCRIPT: Final = "socket.io-client"
PYTHON: Final = ("AsyncClient", "Client", "SimpleClient")
WAYS: Final = [(JAVASCRIPT, transport) for transport in ("default", "polling", "websocket", "fetch")] + [
    (client, transport) for client in PYTHON for transport in ("default", "polling", "websocket")
]

TOKEN: Final = [{"token": "right"}]
BACK: Final = {
    "auth": TOKEN,
    "before": ["before"],
    "server forgets": True,
    "new session": True,
    "auth again": TOKEN,
    "after": ["after"],
}
"""What a client sees whose library connects again by itself."""

SENT_AWAY: Final[dict[str, dict[str, Any]]] = {
    JAVASCRIPT: {"reason here": "io server disconnect", "tries again by itself": False},
    "AsyncClient": {"reason here": "server disconnect"},
    "Client": {"reason here": "server disconnect"},
    "SimpleClient": {},
}

Saw = Callable[[str], dict[str, Any]]


def ways(*clients: str) -> pytest.MarkDecorator:
    chosen = [pytest.param(*way, id="-".join(way)) for way in WAYS if way[0] in clients]
    return pytest.mark.parametrize(("client", "transport"), chosen)


every_client = ways(JAVASCRIPT, *PYTHON)
javascript = ways(JAVASCRIPT)


@pytest.fixture
def saw(client: str, transport: str, meeting: Meeting) -> Saw:
    """What the client saw in a scenario."""
    if client == JAVASCRIPT and npm.MISSING:
        pytest.skip(npm.MISSING)

    def saw(scenario: str) -> dict[str, Any]:
        seen = meeting.seen[client][transport][scenario]
        if "error" in seen:
            pytest.fail(f"{seen.pop('error')}\nwhich came after {seen}", pytrace=False)
        return seen

    return saw


@every_client
def test_events_acks_and_binary_both_ways(saw: Saw, client: str, transport: str) -> None:
    """Bursts come back in order, also while a connection moves to a WebSocket; so do messages of nearly a megabyte."""
    assert saw("conversation") == ({"burst after an upgrade": True} if client == JAVASCRIPT else {}) | {
        "transport": "websocket" if transport in ("default", "websocket") else "polling",
        "auth": [{"token": "right", "n": [1, 2.5, None]}],
        "own sid": True,
        "burst": True,
        "echo": ["ñ ☃ 𝄞 \u2028", {"a": [1, 2.5, None, True]}, []],
        "echo of nothing": [],
        "ack": [{"n": 1}, "two"],
        "ack of nothing": [],
        "acks at once": True,
        "binary": ["mixed", True, 0, True],
        "binary ack": ["0203", "and text"],
        "mixed burst": True,
        "big": True,
        "big binary": True,
        "alive in between": True,
        "server notices the end": True,
    }


@every_client
def test_a_client_that_leaves_at_once(saw: Saw) -> None:
    assert saw("short_visit") == {"server notices the end": True, "auth of none": [{}]}


@every_client
def test_several_namespaces_on_one_connection(saw: Saw, client: str) -> None:
    """Also when there is one among them that does not exist."""
    seen = saw("namespaces")
    if client == "SimpleClient":  # has one, and it need not be the default
        assert seen == {"auth of the second": [{"of": "all"}]}
    else:
        assert seen == {
            "auth": [{"of": "all"}],
            "auth of the second": [{"of": "all"}],
            "refusal": "Invalid namespace",
            "sids differ": True,
            "echo": ["still there"],
        }


@javascript
def test_one_of_several_namespaces_is_left_and_joined_again(saw: Saw) -> None:
    assert saw("namespace_left") == {
        "echo": ["still there"],
        "echo after one has left": ["still there"],
        "comes back as another": True,
        "echo after it came back": ["still there"],
        "nothing for it": True,
    }


@every_client
def test_what_does_not_exist_is_refused(saw: Saw, client: str) -> None:
    python = "One or more namespaces failed to connect: /nowhere"
    assert saw("refused") == {
        "refusal": "Invalid namespace" if client == JAVASCRIPT else python,
        "echo": ["let in elsewhere"],
        "wrong path": "refused",
    }


@every_client
def test_who_is_refused_learns_why_and_who_is_sent_away_stays_away(saw: Saw, client: str) -> None:
    seen = saw("sent_away")
    refusal = {"message": "no", "data": {"code": "AUTH_FAILED"}}
    # python-socketio closes its WebSocket before it has said that it leaves.
    assert seen.pop("reason there when it leaves itself") in (
        "client close",
        *(["transport close"] if client in PYTHON else []),
    )
    assert seen == {
        "refusal": refusal if client != "SimpleClient" else "One or more namespaces failed to connect: /",
        "auth let in": TOKEN,
        "farewell came first": True,
        "server forgets": True,
        "comes back by itself": False,
        "auth of a new beginning": TOKEN,
        "reason there": "server close",
        **SENT_AWAY[client],
    }


def back(client: str) -> dict[str, Any]:
    """In JavaScript, what is emitted meanwhile is kept until then."""
    return BACK | ({"kept": [0, 1, 2, 3, 4]} if client == JAVASCRIPT else {})


@every_client
def test_a_client_whose_connection_is_cut_comes_back(saw: Saw, client: str) -> None:
    assert saw("cut") == back(client)


@pytest.mark.parametrize(("client", "transport"), [(client, "default") for client in (JAVASCRIPT, *PYTHON)])
def test_all_goes_on_over_long_polling_where_no_websocket_passes(saw: Saw) -> None:
    assert saw("no_websockets") == {"burst": True, "transport": "polling", "echo": ["still there"]}


@every_client
def test_both_ends_notice_that_nothing_arrives_any_more(saw: Saw, client: str) -> None:
    assert saw("silent_wire") == back(client)


@every_client
@pytest.mark.parametrize("scenario", ["closed_by_server", "too_large", "server_restart"])
def test_a_client_that_the_server_cuts_off_comes_back(saw: Saw, client: str, transport: str, scenario: str) -> None:
    """Because the server cannot understand it, or it sends too much, or the server is stopped and started again.

    Not always so python-socketio on long-polling, for which a close packet says that it must stay away.
    """
    if client in PYTHON and transport == "polling":
        assert saw(scenario) == {"auth": TOKEN, "before": ["before"], "server forgets": True}
    else:
        assert saw(scenario) == back(client)


@every_client
def test_a_client_with_nothing_to_say_stays_over_many_pings(saw: Saw) -> None:
    assert saw("idle") == {"stays": True, "echo": ["still there"]}


@javascript
def test_what_a_client_missed_arrives_once_and_in_order_when_it_comes_back(saw: Saw) -> None:
    assert saw("recovery") == {
        "before": ["before", "string"],
        "recovered, same sid": [True, True],
        "each once, in order": True,
        "an offset for each": True,
    }


@javascript
def test_a_client_recovers_again_and_again(saw: Saw) -> None:
    assert saw("recovery_again_and_again") == {"recovered": True}


@javascript
def test_who_has_left_or_is_unknown_does_not_recover(saw: Saw) -> None:
    assert saw("no_recovery") == {
        "recovered, new sid after leaving": [False, True],
        "recovered, sid with an unknown pid": [False, True],
        "echo": "served all the same",
    }


def test_nothing_is_left_hanging(meeting: Meeting) -> None:
    """The clients' programs end by themselves, and the server ends when it is told to stop."""
    assert meeting.exit_codes == dict.fromkeys(meeting.exit_codes, 0)


def test_the_servers_found_nothing_wrong_with_themselves(meeting: Meeting) -> None:
    """Whatever became of their connections."""
    assert meeting.server_logs == dict.fromkeys(meeting.server_logs, "")
