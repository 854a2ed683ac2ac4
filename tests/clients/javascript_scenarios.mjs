// socket.io-client, unmodified, doing all that a worker does, in every way it can connect.
//
// Usage: node javascript_scenarios.mjs URLS, a JSON object of the servers' URLs. When the clients that are to see their
// server stop have connected it prints "connected"; in the end, as one JSON object,
// {"socket.io-client": {transport: {scenario: what it saw}}}.
// A scenario that fails says so under "error", next to what it had seen.

import { isDeepStrictEqual } from "node:util";
import { Fetch } from "engine.io-client";
import { io, Manager } from "socket.io-client";
import { Inbox, sleep, Wire } from "./javascript_tools.mjs";

const SCENARIO_TIMEOUT_MS = 40_000;
const FORGET_TIMEOUT_MS = 15_000; // far from the ping timeout of a calm server
const ARRIVES_MS = 500; // until the server has surely read what was sent to it
const RECONNECTION_MS = 2_000; // over the library's first attempt
const BURST = 500;

const WAYS = {
  default: {},
  polling: { transports: ["polling"] },
  websocket: { transports: ["websocket"] },
  fetch: { transports: [Fetch] }, // long-polling as browsers' fetch() does it
};

const range = (first, end) => Array.from({ length: end - first }, (_, index) => first + index);

// Opens, keeps and in the end closes the sockets and wires of one scenario.
class Scene {
  #ends = [];

  constructor(way) {
    this.way = way;
    this.upgrades = way.transports === undefined;
  }

  join(socket) {
    this.#ends.push(() => socket.disconnect());
    return { socket, inbox: new Inbox(socket) };
  }

  open(url, options = {}) {
    return this.join(io(url, { forceNew: true, ...this.way, ...options }));
  }

  async wire(url, options) {
    const wire = await Wire.to(url, options);
    this.#ends.push(() => wire.close());
    return wire;
  }

  close() {
    this.#ends.reverse().forEach((end) => end());
  }

  async upgraded({ socket }) {
    if (this.upgrades && socket.io.engine.transport.name !== "websocket") {
      await new Promise((resolve) => socket.io.engine.once("upgrade", resolve));
    }
  }
}

async function echo({ socket, inbox }, ...args) {
  socket.emit("message", ...args);
  return inbox.take("message-back");
}

const ask = ({ socket }, ...args) => new Promise((resolve) => socket.emit("message-with-ack", ...args, (...a) => resolve(a)));

// What the server says of an Engine.IO session when asked in a way that does it no harm, over the transport it is not on:
// 3 (bad request) of a live one, 1 (session ID unknown) of one that has ended.
async function askAbout(url, sid, transport) {
  const other = transport === "polling" ? "websocket" : "polling";
  try {
    const request = { signal: AbortSignal.timeout(2_000) };
    return (await (await fetch(`${url}/socket.io/?EIO=4&transport=${other}&sid=${sid}`, request)).json()).code;
  } catch {
    return null; // an upgrade has made it the same transport, and there is no answer
  }
}

async function forgets(url, sid, transport, within = FORGET_TIMEOUT_MS) {
  const giveUp = Date.now() + within;
  let code;
  while ((code = await askAbout(url, sid, transport)) !== 1 && Date.now() < giveUp) await sleep(20);
  return code === 1;
}

async function burst({ socket, inbox }) {
  range(0, BURST).forEach((n) => socket.emit("message", n));
  return isDeepStrictEqual(await inbox.takeMany("message-back", BURST), range(0, BURST).map((n) => [n]));
}

async function conversation(seen, scene, { calm }) {
  const client = scene.open(calm, { auth: { token: "right", n: [1, 2.5, null] } });
  const { socket, inbox } = client;
  await inbox.take("connect");
  seen.burst = await burst(client); // an upgrade has only begun
  await scene.upgraded(client);
  seen.transport = socket.io.engine.transport.name;
  seen.auth = await inbox.take("auth");
  seen["own sid"] = Boolean(socket.id) && socket.id !== socket.io.engine.id;

  seen.echo = await echo(client, "ñ ☃ 𝄞 \u2028", { a: [1, 2.5, null, true] }, []);
  seen["echo of nothing"] = await echo(client);
  seen.ack = await ask(client, { n: 1 }, "two");
  seen["ack of nothing"] = await ask(client);
  const answers = await Promise.all(range(0, 50).map((n) => ask(client, n)));
  seen["acks at once"] = isDeepStrictEqual(answers, range(0, 50).map((n) => [n]));

  const bytes = Buffer.from(range(0, 256));
  const [text, { data, more }] = await echo(client, "mixed", { data: bytes, more: [Buffer.alloc(0), Buffer.alloc(100_000, 1)] });
  seen.binary = [text, bytes.equals(data), more[0].length, Buffer.alloc(100_000, 1).equals(more[1])];
  const [answer] = await ask(client, [Buffer.from([2, 3]), "and text"]);
  seen["binary ack"] = [answer[0].toString("hex"), answer[1]];

  const mixed = range(0, 60).map((n) => [n % 2 ? n : Buffer.from([n])]);
  mixed.forEach(([n]) => socket.emit("message", n));
  seen["mixed burst"] = isDeepStrictEqual(await inbox.takeMany("message-back", 60), mixed);
  seen["burst after an upgrade"] = await burst(client);

  const big = ["a", "b", "c"].map((letter) => [letter.repeat(900_000)]);
  big.forEach(([letters]) => socket.emit("message", letters));
  seen.big = isDeepStrictEqual(await inbox.takeMany("message-back", 3), big);
  const bigBytes = Buffer.alloc(700_000, bytes);
  seen["big binary"] = bigBytes.equals((await echo(client, bigBytes))[0]);

  const [sid, transport] = [socket.io.engine.id, socket.io.engine.transport.name];
  seen["alive in between"] = inbox.count("disconnect") === 0 && (await askAbout(calm, sid, transport)) === 3;
  socket.disconnect();
  await inbox.take("disconnect");
  seen["server notices the end"] = await forgets(calm, sid, transport);
}

// Gone again before anything is answered: in the middle of the upgrade, where there is one.
async function short_visit(seen, scene, { calm }) {
  const { socket, inbox } = scene.open(calm);
  await inbox.take("connect");
  const { id, transport } = socket.io.engine;
  socket.disconnect();
  seen["server notices the end"] = await forgets(calm, id, transport.name);
  socket.connect();
  await inbox.take("connect");
  seen["auth of none"] = await inbox.take("auth");
}

async function namespaces(seen, scene, { calm }) {
  const manager = new Manager(calm, scene.way);
  const main = scene.join(manager.socket("/", { auth: { of: "all" } }));
  const custom = scene.join(manager.socket("/custom", { auth: { of: "all" } }));
  const stranger = scene.join(manager.socket("/nowhere"));
  seen.auth = await main.inbox.take("auth");
  seen["auth of the second"] = await custom.inbox.take("auth");
  const [error] = await stranger.inbox.take("connect_error");
  seen.refusal = error.message;
  seen["sids differ"] = Boolean(main.socket.id) && main.socket.id !== custom.socket.id;
  seen.echo = await echo(main, "still there");
}

// What one of several namespaces does is nothing to the others.
async function namespace_left(seen, scene, { calm }) {
  const manager = new Manager(calm, scene.way);
  const main = scene.join(manager.socket("/"));
  const custom = scene.join(manager.socket("/custom"));
  await Promise.all([main.inbox.take("connect"), custom.inbox.take("connect")]);
  const { id } = custom.socket;
  custom.socket.emit("message", "nobody listens");
  seen.echo = await echo(main, "still there");
  custom.socket.disconnect();
  seen["echo after one has left"] = await echo(main, "still there");
  custom.socket.connect();
  await custom.inbox.takeMany("auth", 2);
  seen["comes back as another"] = custom.socket.id !== id;
  seen["echo after it came back"] = await echo(main, "still there");
  seen["nothing for it"] = custom.inbox.count("message-back") === 0;
}

async function refused(seen, scene, { calm }) {
  const refused = scene.open(`${calm}/nowhere`);
  const [error] = await refused.inbox.take("connect_error");
  seen.refusal = error.message;
  seen.echo = await echo(scene.open(calm), "let in elsewhere");
  const lost = scene.open(calm, { path: "/elsewhere/", reconnection: false });
  await lost.inbox.take("connect_error");
  seen["wrong path"] = "refused";
}

// Refused with a reason, and let in after all; then sent away, which is not for the library to undo.
async function sent_away(seen, scene, { strict }) {
  const { socket, inbox } = scene.open(strict, { auth: { token: "wrong" } });
  const [error] = await inbox.take("connect_error");
  seen.refusal = { message: error.message, data: error.data };
  seen["tries again by itself"] = socket.active;
  socket.auth = { token: "right" };
  socket.connect();
  seen["auth let in"] = await inbox.take("auth");
  await scene.upgraded({ socket });

  const [sid, session, transport] = [socket.id, socket.io.engine.id, socket.io.engine.transport.name];
  socket.emit("goodbye");
  const [reason] = await inbox.take("disconnect");
  seen["reason here"] = reason;
  seen["farewell came first"] = inbox.count("farewell") === 1;
  seen["server forgets"] = await forgets(strict, session, transport);
  await sleep(RECONNECTION_MS);
  seen["comes back by itself"] = inbox.count("connect") > 1;
  socket.connect();
  seen["auth of a new beginning"] = await inbox.take("auth");
  seen["reason there"] = await left(socket, sid);

  const other = scene.open(strict);
  await other.inbox.take("auth");
  const { id } = other.socket;
  other.socket.disconnect();
  seen["reason there when it leaves itself"] = await left(socket, id);
}

async function left(socket, sid) {
  let reason;
  while (!(reason = await socket.emitWithAck("how did it leave", sid))) await sleep(20);
  return reason;
}

async function comesBack(seen, client, url, breakIt, mendIt = () => {}) {
  const { socket, inbox } = client;
  const [id, sid, transport] = [socket.id, socket.io.engine.id, socket.io.engine.transport.name];
  seen.auth = await inbox.take("auth");
  seen.before = await echo(client, "before");
  await breakIt();
  await inbox.take("disconnect");
  mendIt();
  range(0, 5).forEach((n) => socket.emit("message", n)); // kept until it is back
  seen["server forgets"] = url === null || (await forgets(url, sid, transport));
  await inbox.take("connect");
  seen["new session"] = Boolean(socket.id) && socket.id !== id && socket.io.engine.id !== sid;
  seen["auth again"] = await inbox.take("auth");
  seen.kept = (await inbox.takeMany("message-back", 5)).flat();
  seen.after = await echo(client, "after");
}

async function opened(scene, url) {
  const client = scene.open(url, { auth: { token: "right" } });
  await client.inbox.take("connect");
  await scene.upgraded(client);
  return client;
}

// On long-polling the server notices by the poll that it holds.
async function broken(wire, { socket }, breakIt) {
  if (socket.io.engine.transport.name === "polling") await wire.held();
  await sleep(ARRIVES_MS);
  breakIt();
}

async function cut(seen, scene, { calm }) {
  const wire = await scene.wire(calm);
  const client = await opened(scene, wire.url);
  await comesBack(seen, client, calm, () => broken(wire, client, () => wire.cut()), () => wire.mend());
}

async function closed_by_server(seen, scene, { calm }) {
  const client = await opened(scene, calm);
  await comesBack(seen, client, calm, () => client.socket.io.engine.write("not a packet"));
}

// Of what is too large for the server only the sender has to suffer, and not for long.
async function too_large(seen, scene, { lively }) {
  const client = await opened(scene, lively);
  await comesBack(seen, client, lively, () => client.socket.emit("message", "a".repeat(1_100_000)));
}

// Where something between the two lets no WebSocket through, all goes on over long-polling.
async function no_websockets(seen, scene, { calm }) {
  if (!scene.upgrades) return;
  const wire = await scene.wire(calm, { websockets: false });
  const client = scene.open(wire.url);
  await client.inbox.take("connect");
  seen.burst = await burst(client);
  seen.transport = client.socket.io.engine.transport.name;
  seen.echo = await echo(client, "still there");
}

async function silent_wire(seen, scene, { lively }) {
  const wire = await scene.wire(lively);
  const client = await opened(scene, wire.url);
  await comesBack(seen, client, lively, () => broken(wire, client, () => wire.silence()), () => wire.mend());
}

async function idle(seen, scene, { lively }) {
  const client = await opened(scene, lively);
  const { id } = client.socket;
  await sleep(7_000);
  seen.stays = client.inbox.count("disconnect") === 0 && client.socket.id === id;
  seen.echo = await echo(client, "still there");
}

async function server_restart(seen, scene, { restarting }, connected) {
  const client = await opened(scene, restarting);
  await comesBack(seen, client, null, connected);
}

// What the server sent while nobody received it comes after the connection does, in order and once.
async function recovery(seen, scene, { recovering }) {
  const wire = await scene.wire(recovering);
  const client = await opened(scene, wire.url);
  const { socket, inbox } = client;
  const [text, offset] = await echo(client, "before");
  seen.before = [text, typeof offset];
  const { id } = socket;

  wire.lose();
  const drained = new Promise((resolve) => socket.io.engine.once("drain", resolve));
  range(0, 50).forEach((n) => socket.emit("message", n, "in flight"));
  socket.emit("message", "last in flight");
  // A POST's answer says that the server has the events; of a WebSocket, only that it answered the last of them.
  await drained;
  await wire.lost(socket.io.engine.transport.name === "websocket" ? "last in flight" : "message-back");
  wire.cut();

  await inbox.take("disconnect");
  wire.mend();
  range(50, 60).forEach((n) => socket.emit("message", n, "kept"));
  await inbox.take("connect");
  seen["recovered, same sid"] = [socket.recovered, socket.id === id];
  socket.emit("message", "after");
  const events = await inbox.takeMany("message-back", 62);
  seen["each once, in order"] = isDeepStrictEqual(
    events.map(([first]) => first),
    [...range(0, 50), "last in flight", ...range(50, 60), "after"],
  );
  seen["an offset for each"] = new Set(events.map((event) => event.at(-1))).size === 62;
}

async function recovery_again_and_again(seen, scene, { recovering }) {
  const client = await opened(scene, recovering);
  const { socket, inbox } = client;
  const { id } = socket;
  for (const round of [1, 2, 3]) {
    await echo(client, `round ${round}`, Buffer.from([round]));
    await scene.upgraded(client);
    socket.io.engine.close();
    await inbox.take("disconnect");
    await inbox.take("connect");
    if (!socket.recovered || socket.id !== id) throw new Error(`not recovered in round ${round}`);
  }
  seen.recovered = true;
}

async function no_recovery(seen, scene, { recovering }) {
  const left = await opened(scene, recovering);
  await echo(left, "an offset");
  const { id } = left.socket;
  left.socket.disconnect().connect();
  await left.inbox.take("connect");
  seen["recovered, new sid after leaving"] = [Boolean(left.socket.recovered), left.socket.id !== id];

  const forged = scene.open(recovering, { auth: { pid: "unknown", offset: "unknown" } });
  await forged.inbox.take("connect");
  seen["recovered, sid with an unknown pid"] = [Boolean(forged.socket.recovered), Boolean(forged.socket.id)];
  seen.echo = (await echo(forged, "served all the same"))[0];
}

// Those that keep the machine busy come before those that mostly wait, and would wait too long then.
const SCENARIOS = [
  { conversation, no_websockets },
  {
    short_visit, namespaces, namespace_left, refused, sent_away, cut, closed_by_server, too_large, silent_wire, server_restart,
    idle, recovery, recovery_again_and_again, no_recovery,
  },
];

async function play(scenario, way, urls, connected) {
  const seen = {};
  const scene = new Scene(way);
  let timer;
  const deadline = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("timed out")), SCENARIO_TIMEOUT_MS);
  });
  try {
    await Promise.race([scenario(seen, scene, urls, connected), deadline]);
  } catch (error) {
    seen.error = String(error.stack);
  } finally {
    clearTimeout(timer);
    scene.close();
  }
  return seen;
}

const urls = JSON.parse(process.argv[2]);
let missing = Object.keys(WAYS).length;
const connected = () => {
  missing -= 1;
  if (missing === 0) console.log("connected");
};
const seen = Object.fromEntries(Object.keys(WAYS).map((name) => [name, {}]));
for (const scenarios of SCENARIOS) {
  const plays = Object.entries(WAYS).flatMap(([name, way]) =>
    Object.entries(scenarios).map(async ([key, scenario]) => {
      seen[name][key] = await play(scenario, way, urls, connected);
    }),
  );
  await Promise.all(plays);
}
console.log(JSON.stringify({ "socket.io-client": seen }));
