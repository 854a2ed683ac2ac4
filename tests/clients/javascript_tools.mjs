// What the scenarios look at a socket with, and what they do to its connection from outside.

import net from "node:net";

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Keeps a socket's events until they are asked for.
export class Inbox {
  #queues = new Map();

  constructor(socket) {
    for (const event of ["connect", "disconnect", "connect_error"]) {
      socket.on(event, (...args) => this.#put(event, args));
    }
    socket.onAny((event, ...args) => this.#put(event, args));
  }

  #queue(event) {
    if (!this.#queues.has(event)) this.#queues.set(event, { kept: [], takers: [] });
    return this.#queues.get(event);
  }

  #put(event, args) {
    const queue = this.#queue(event);
    if (queue.takers.length > 0) queue.takers.shift()(args);
    else queue.kept.push(args);
  }

  take(event) {
    const queue = this.#queue(event);
    return queue.kept.length > 0 ? Promise.resolve(queue.kept.shift()) : new Promise((resolve) => queue.takers.push(resolve));
  }

  async takeMany(event, count) {
    const taken = [];
    while (taken.length < count) taken.push(await this.take(event));
    return taken;
  }

  count(event) {
    return this.#queue(event).kept.length;
  }
}

// The wire between a client and its server: what happens to it from outside.
export class Wire {
  #pairs = new Set();
  #state = "whole";
  #losing = false;
  #lost = "";
  #websockets;
  #server;

  static async to(url, { websockets = true } = {}) {
    const wire = new Wire();
    wire.#websockets = websockets;
    wire.#server = net.createServer((client) => wire.#accept(client, Number(new URL(url).port)));
    await new Promise((resolve) => wire.#server.listen(0, "127.0.0.1", resolve));
    wire.url = `http://127.0.0.1:${wire.#server.address().port}`;
    return wire;
  }

  #accept(client, port) {
    client.on("error", () => {}); // closes it, too
    if (this.#state === "cut") client.resetAndDestroy();
    else if (this.#state === "silent") this.#pairs.add({ ends: [client] });
    else this.#join(client, net.connect(port, "127.0.0.1"));
  }

  #join(client, server) {
    const pair = { ends: [client, server], request: "", waiting: false, silent: false, lossy: false };
    this.#pairs.add(pair);
    client.on("data", (data) => {
      const head = data.toString("latin1", 0, 1_000);
      if (/^(GET|POST) /.test(head)) pair.request = head;
      pair.waiting = true;
      if (!this.#websockets && head.includes("transport=websocket")) client.destroy();
      else if (!pair.silent) server.write(data);
    });
    server.on("data", (data) => {
      pair.waiting = false;
      pair.lossy ||= this.#losing && !pair.request.startsWith("POST");
      if (pair.lossy) this.#lost += data.toString("latin1");
      else if (!pair.silent) client.write(data);
    });
    client.on("close", () => pair.silent || server.destroy());
    server.on("error", () => {});
    server.on("close", () => pair.silent || pair.lossy || client.destroy());
  }

  // Until the server holds a poll.
  async held() {
    const isHeld = ({ request, waiting }) => waiting && /^GET .*&sid=/.test(request);
    while (!Array.from(this.#pairs).some(isHeld)) await sleep(5);
  }

  // From now on all that the server sends is lost, but its answers to POSTs.
  lose() {
    this.#losing = true;
  }

  async lost(text) {
    while (!this.#lost.includes(text)) await sleep(5);
  }

  // All connections are reset, those there are and, until it is mended, new ones.
  cut() {
    this.#state = "cut";
    this.#losing = false;
    // What is closing already cannot be reset.
    const cut = (end) => (end.writable ? end.resetAndDestroy() : end.destroy());
    for (const { ends } of this.#pairs) ends.forEach(cut);
    this.#pairs.clear();
  }

  // Nothing passes, not even an end, on the connections there are and, until it is mended, on new ones.
  silence() {
    this.#state = "silent";
    for (const pair of this.#pairs) pair.silent = true;
  }

  // New connections pass again.
  mend() {
    this.#state = "whole";
  }

  close() {
    this.#server.close();
    this.cut();
  }
}
