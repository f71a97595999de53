"use strict";
// Shows /api/events, /api/history and, for the list of sources, /api/status. Sets strings from
// outside only as text, never as HTML.
const $ = (id) => document.getElementById(id);
let status, before, plots, allSources, span = "hour", sort = "state", lastSeen = 0;

function el(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value !== undefined && value !== null) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// Formats numbers and times for people.
const count = (n) => Math.round(n).toLocaleString("en");
const rate = (n) => n >= 100 || n === 0 ? count(n) : n.toPrecision(2);
function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let place = 0;
  while (n >= 1024 && place < units.length - 1) { n /= 1024; place += 1; }
  return `${place && n < 100 ? n.toFixed(1) : Math.round(n)} ${units[place]}`;
}
function time(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const parts = [[86400, "d"], [3600, "h"], [60, "min"]];
  const first = parts.findIndex(([size]) => seconds >= size);
  return parts.slice(first, first + 2).map(([size, name]) => {
    const whole = Math.floor(seconds / size);
    seconds -= whole * size;
    return whole ? `${whole} ${name}` : "";
  }).join(" ").trim();
}
const ago = (text) => text ? `since ${text} (${time((Date.now() - Date.parse(text)) / 1000)})` : "";
const sum = (object) => Object.values(object || {}).reduce((all, one) => all + one, 0);
const entries = (object) => Object.entries(object || {}).filter(([, n]) => n > 0).map(([name, n]) => `${name} ${count(n)}`).join(", ");

function list(rows) {
  const node = el("dl");
  for (const [name, value, meaning, kind] of rows) {
    node.append(el("dt", { title: meaning }, name), el("dd", { class: kind, title: meaning }, String(value)));
  }
  return node;
}

function table(id, caption, columns, rows) {
  const head = el("tr", {}, ...columns.map(([name, meaning, text, key]) => {
    const title = { title: meaning, scope: "col", class: text ? "text" : undefined };
    if (key === undefined) return el("th", title, name);
    title["aria-sort"] = sort === key ? "descending" : "none";
    const button = el("button", { type: "button", "data-sort": key }, name);
    return el("th", title, button);
  }));
  const body = rows.map((cells) => el("tr", {}, ...cells.map((cell, place) => {
    const kind = columns[place][2] ? "text" : undefined;
    return place === 0 ? el("th", { scope: "row", class: "text" }, cell) : el("td", { class: kind }, cell);
  })));
  const empty = rows.length ? [] : [el("tr", {}, el("td", { class: "text", colspan: columns.length }, "none"))];
  const focused = document.activeElement && document.activeElement.dataset.sort;
  $(id).replaceChildren(el("caption", {}, caption), el("thead", {}, head), el("tbody", {}, ...body, ...empty));
  if (focused) $(id).querySelector(`[data-sort="${focused}"]`)?.focus();
}

// Draws a line over the last hour or day, labelled with the present and the greatest value.
function plot(name, label, show) {
  const values = plots?.[span].series[name] || [];
  const most = Math.max(0, ...values);
  const length = 359;
  const first = length - values.length + 1;
  const path = values.map((value, place) =>
    `${place ? "L" : "M"}${first + place},${(30 - (most ? value / most : 0) * 28).toFixed(1)}`).join("");
  const now = values.length ? show(values[values.length - 1]) : "no value yet";
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${length} 31`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${label}, last ${span}: now ${now}, at most ${show(most)}`);
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  line.setAttribute("d", path || "M0,30");
  svg.append(line);
  return el("figure", {}, el("figcaption", {}, el("span", {}, label), el("span", {}, `${now}, at most ${show(most)}`)), svg);
}

const words = { problem: "Wrong", warning: "To do", note: "Note" };
function headline() {
  const number = (severity) => status.findings.filter((one) => one.severity === severity).length;
  const [wrong, todo] = [number("problem"), number("warning")];
  const text = wrong ? `${wrong} ${wrong > 1 ? "things are" : "thing is"} wrong${todo ? `, ${todo} more to do` : ""}`
    : todo ? `${todo} ${todo > 1 ? "things" : "thing"} to do` : "All is well";
  const node = $("headline");
  if (node.textContent !== text) node.textContent = text;
  node.className = wrong ? "problem" : todo ? "warning" : "well";
  document.title = `${text} · Twinflux`;
  $("findings").replaceChildren(...status.findings.map((one) => el("li", { class: one.severity },
    el("span", { class: "word" }, words[one.severity]), one.what + " ",
    one.since ? el("span", { class: "since" }, ago(one.since)) : null,
    one.to_do ? el("p", { class: "do" }, "Do: ", ...withCommands(one.to_do)) : null)));
}
// Marks the commands in a sentence as code.
function withCommands(text) {
  const parts = text.split(/((?:twinflux|sysctl) [^;,]*?(?= shows|[;,]|$))/);
  return parts.map((part, place) => place % 2 ? el("code", {}, part) : part);
}

function backend(one) {
  const kind = one.state === "up" ? "well" : one.state === "unknown" ? "warn" : one.state === "retrying" ? "warn" : "bad";
  const latency = (value) => value ? `${value.p50.toFixed(1)} / ${value.p99.toFixed(1)} ms` : "–";
  const read = one.read;
  const letters = one.dead_letters;
  const rows = [
    ["complete", one.complete ? "yes" : "no", "Whether this copy has whatever any other copy has", one.complete ? "well" : "bad"],
    ["serves readers", read ? `${read.serves}${read.reason ? `: ${read.reason}` : ""}` : "not asked", "Whether /query sends readers here, and why not", read?.serves === "no" ? "warn" : ""],
    ["lag", time(one.lag_seconds), "How long the oldest line has waited that this backend does not have"],
    ["waiting", `${count(one.pending_lines)} lines, ${bytes(one.pending_bytes)}`, "Lines that it has not confirmed, wherever they are"],
    ["on disk", `${count(one.pending_on_disk_lines)} lines`, "Those of them that a crash does not cost"],
    ["caught up in", one.eta_seconds === null ? "–" : time(one.eta_seconds), "At the rate of the last minute"],
    ["delivered", `${rate(one.delivered_per_second)} lines/s`, "Lines confirmed a second, over the last minute"],
    ["latency p50 / p99", latency(one.recent_latency_ms), "Receive to confirmed, over the last five minutes"],
    ["since the start", latency(one.latency_ms), "The same since the relay started"],
    ["requests", `${count(one.requests)}, ${count(one.retries)} again, ${one.in_flight} under way`, "Requests made, made again, and under way now"],
    ["dead letters", `${count(letters.kept)} kept, ${bytes(letters.bytes)}`, "Lines that it will never take, kept with its answer", letters.kept ? "warn" : ""],
    ["statements", `${one.statements_pending} waiting, ${one.statements_differed} differed`, "InfluxQL statements that it is owed, and that it refused although another backend ran them"],
  ];
  if (one.next_try) rows.push(["next try", one.next_try, `Or now: twinflux backend ${one.name} try`]);
  if (read) rows.push(["queries", `${count(read.queries)}, ${count(read.failovers)} failed over, ${count(read.incomplete)} incomplete, ${count(read.cut)} cut`, "Readers' questions sent here, and what became of them"]);
  if (one.last_error) {
    rows.push(["last error", `${one.last_error} ${one.last_error_at ? `at ${one.last_error_at}` : ""}${one.state === "up" ? ", over" : ""}`, "The last error's text; over, if the backend is up again"]);
  }
  const held = one.held.map((held) => el("p", { class: "bad" }, `held: ${held.database || "everything"}: ${held.answer} ${ago(held.since)}. `, ...withCommands(held.what_to_do)));
  const refused = Object.entries(one.rejected_samples).map(([reason, sample]) => el("p", { class: "warn" }, `refused as ${reason}: `,
    el("code", {}, sample.line), ` for ${sample.database}${sample.hosts.length ? `, from ${sample.hosts.join(", ")}` : ""}: ${sample.answer} `,
    el("code", {}, `twinflux dead-letters show ${sample.id}`)));
  return el("article", { class: "card" },
    el("h3", {}, one.name, el("span", { class: `badge ${kind}` }, one.state), " ", el("small", {}, one.down_since ? ago(one.down_since) : one.url)),
    ...held, ...refused, list(rows),
    plot(`delivered:${one.name}`, "lines/s delivered", rate), plot(`pending:${one.name}`, "lines waiting", count),
    plot(`p99_ms:${one.name}`, "latency p99, ms", rate));
}

function ledger() {
  const columns = [["backend", "Each has a ledger of its own", true], ["accepted", "Lines taken from senders"],
    ["recovered", "Lines found in the journal at the start"], ["resent", "Dead letters that were sent again"],
    ["delivered", "Confirmed by the backend"], ["rejected", "Never to be taken: kept as dead letters"],
    ["dropped", "Given up by policy: each is a gap"], ["pending", "Not yet confirmed"],
    ["difference", "What is counted nowhere: 0, or lines were lost"]];
  table("ledger", "Lines since the start", columns, status.backends.map((one) => {
    const [rejected, dropped] = [sum(one.rejected_lines), sum(one.dropped_lines)];
    const left = status.accepted_lines + one.recovered_lines + one.resent_lines;
    const difference = left - one.delivered_lines - rejected - dropped - one.pending_lines;
    return [one.name, count(status.accepted_lines), count(one.recovered_lines), count(one.resent_lines),
      count(one.delivered_lines), el("span", { title: entries(one.rejected_lines) }, count(rejected)),
      el("span", { title: entries(one.dropped_lines) }, count(dropped)), count(one.pending_lines),
      el("span", { class: difference ? "bad" : "well" }, `${count(difference)}${difference ? "" : " ✓"}`)];
  }));
}

function listeners() {
  const columns = [["listener", "Kind and address", true], ["to", "Database that lines go to", true],
    ["lines/s", "Over the last seconds"], ["lines", "Lines seen: accepted and refused"],
    ["came", "Datagrams, connections or requests"], ["dropped by kernel", "The receive buffer was full: these are lost"],
    ["refused", "Lines that are not valid, by reason", true], ["denied", "From addresses that are not allowed"],
    ["buffer", "Receive buffer that the kernel gave, of what was asked for"]];
  table("listeners", "Since the start", columns, status.receive.map((one, place) => {
    const old = before?.receive[place];
    const seconds = before ? status.uptime_seconds - before.uptime_seconds : 0;
    const came = one.kind === "udp" ? `${count(one.datagrams)} datagrams` : one.kind === "http"
      ? `${count(one.requests)} requests, ${one.open_connections} open` : `${count(one.connections)} connections, ${one.open_connections} open`;
    const samples = Object.entries(one.refused_samples || {}).map(([reason, sample]) =>
      el("div", {}, `${reason}: `, el("code", {}, sample.line), ` from ${sample.source || "?"}${sample.cure ? `: ${sample.cure}` : ""}`));
    return [`${one.kind} ${one.listen}`, one.database || "what requests name",
      old && seconds > 0 ? rate((one.lines - old.lines) / seconds) : "–", count(one.lines), came,
      one.kind === "udp" ? count(one.kernel_dropped) : "–",
      el("div", {}, entries(one.refused) || "0", ...samples), count(one.denied),
      one.kind === "udp" ? `${bytes(one.receive_buffer)} of ${bytes(one.receive_buffer_wanted)}` : "–"];
  }));
  $("receive").replaceChildren(
    el("div", { class: "card" }, plot("accepted", "lines/s accepted", rate)),
    el("div", { class: "card" }, plot("refused", "lines/s refused", rate)),
    el("div", { class: "card" }, plot("kernel_dropped", "datagrams/s dropped by the kernel", rate)));
}

function journal() {
  const one = status.journal;
  const bar = (name, used, bound) => el("p", {}, `${name}: ${bytes(used)} of ${bytes(bound)} `,
    el("progress", { max: bound || 1, value: used, "aria-label": `${name} used` }));
  $("journal").replaceChildren(
    el("div", { class: "card" }, bar("memory", one.memory_bytes, one.memory_bound_bytes),
      bar("disk", one.disk_bytes, one.disk_bound_bytes), plot("disk_bytes", "disk", bytes), plot("memory_bytes", "memory", bytes)),
    el("div", { class: "card" }, list([
      ["disk is", one.state, "ok, full (no room) or failing: then lines are in memory only", one.state === "ok" ? "well" : "bad"],
      ["full in", one.full_in_seconds === null ? "not filling" : time(one.full_in_seconds), "At the rate of the last minute"],
      ["durability", one.durability, "What a crash may cost"],
      ["segments", count(one.segments), "Files of the log"],
      ["sync p99", `${one.sync_ms.p99.toFixed(1)} ms`, "How long the disk takes to confirm"],
      ["errors", `${one.write_errors} write, ${one.read_errors} read, ${one.sync_errors} sync`, "Since the start"],
      ["last error", one.last_error || "none", "Whether or not it is over"],
      ["where", one.data_dir, "data_dir"], ["identity", one.identity || "in memory", "The journal's own number"]])));
}

function gaps() {
  const columns = [["gap", "Its number"], ["backend", "Who lacks the lines", true], ["database", "All, if none is named", true],
    ["lines", "0 if that is not known"], ["points", "The times of the points that are missing", true],
    ["received", "When the lines came", true], ["reason", "Why they were given up", true], ["state", "open until it is repaired or vouched for", true]];
  table("gaps", "Lines that a copy lacks", columns, status.journal.gaps.slice(-200).map((one) => [String(one.id), one.backend,
    one.database || "all", count(one.lines), one.points_from || one.points_until ? `${one.points_from || "the beginning"} to ${one.points_until || "now"}` : "all times",
    `${one.from} to ${one.until}`, one.reason, one.state]));
}

const order = {
  state: (one) => (one.silent ? 2 : 0) + (one.refused || one.implausible_recently ? 1 : 0), lines: (one) => one.lines,
  rate: (one) => one.lines_per_second, refused: (one) => one.refused, seen: (one) => one.last_seen_seconds,
};
function sources() {
  const search = $("search").value.toLowerCase();
  const known = allSources || status.sources.top;
  const found = known.filter((one) => `${one.host} ${one.address} ${one.kind}`.toLowerCase().includes(search));
  found.sort((one, other) => order[sort](other) - order[sort](one) || other.lines - one.lines);
  const most = 200;
  $("shown").textContent = `${count(status.sources.known)} known, ${count(status.sources.silent)} silent; ${count(Math.min(most, found.length))} of ${count(found.length)} shown`;
  const columns = [["host", "What its lines call it, else its address", true], ["address", "Where it sends from", true],
    ["state", "Silent: nothing for three of its intervals", true, "state"], ["lines/s", "Over the last minute", false, "rate"],
    ["lines", "Accepted and refused", false, "lines"], ["refused", "Lines that are not valid", false, "refused"],
    ["interval", "From one of its bursts to the next"], ["last seen", "How long ago", false, "seen"]];
  table("sources", "Silent and refusing ones first; press a heading for another order", columns, found.slice(0, most).map((one) => {
    const state = [one.silent ? "silent" : "", one.refused ? "refused lines" : "",
      one.implausible_recently ? `times are off${one.likely_unit ? `: sends ${one.likely_unit}?` : ""}` : ""].filter(Boolean).join(", ");
    return [one.host || one.address, `${one.address} (${one.kind})`, el("span", { class: state ? "warn" : "well" }, state || "sends"),
      rate(one.lines_per_second), count(one.lines), count(one.refused), time(one.interval_seconds), `${time(one.last_seen_seconds)} ago`];
  }));
}

function pair() {
  const one = status.pair;
  $("pair").hidden = !one;
  if (!one) return;
  const kind = one.state === "up" ? "well" : one.state === "gone" ? "bad" : "warn";
  const link = el("a", { href: one.peer, rel: "noreferrer" }, one.peer);
  $("peer").replaceChildren(el("article", { class: "card" },
    el("h3", {}, link, el("span", { class: `badge ${kind}` }, one.state), " ", el("small", {}, ago(one.since))),
    list([
      ["its role", one.peer_role || "–", "active: its machine holds the pair's address"],
      ["this relay's role", one.role || "–", "active: this machine holds the pair's address", one.is_odd ? "bad" : ""],
      ["address", one.address || "none configured", "The one that hosts send to"],
      ["version", one.version || "–", "Of its program", one.is_far_apart ? "warn" : ""],
      ["up", one.uptime_seconds === null ? "–" : time(one.uptime_seconds), "Since its start, when it was heard last"],
      ["its journal", one.journal || "–", "The journal's own number"],
      ["last error", one.last_error || "none", "Why it did not answer the last time", one.last_error ? "warn" : ""]])));
  const columns = [["backend", "The same name in both relays", true], ["state", "As the other relay sees it", true],
    ["waiting", "Lines that the other relay owes it"], ["lag", "How long the oldest of them has waited"],
    ["complete", "Whether it has all that the other relay was given", true]];
  table("owed", "What the other relay owes", columns, one.backends.map((owed) => [owed.name, owed.state,
    count(owed.pending_lines), time(owed.lag_seconds), el("span", { class: owed.complete ? "well" : "bad" }, owed.complete ? "yes" : "no")]));
}

function certificates() {
  $("tls").hidden = !status.certificates.length;
  table("certificates", "Of listeners with TLS", [["file", "", true], ["expires", "", true], ["days left", ""]],
    status.certificates.map((one) => [one.file, one.expires, el("span", { class: one.days_left < 14 ? "bad" : "well" }, String(one.days_left))]));
}

function draw() {
  $("version").textContent = `${status.version}, up ${time(status.uptime_seconds)}`;
  headline();
  $("backends").replaceChildren(...status.backends.map(backend));
  ledger(); listeners(); journal(); gaps(); sources(); pair(); certificates();
}

async function fetchJson(path) {
  const answer = await fetch(path, { cache: "no-store" });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}
async function refresh() {
  try {
    plots = await fetchJson("/api/history");
    allSources = (await fetchJson("/api/status")).sources.top;
    if (status) draw();
  } catch { /* The link's state is shown below. */ }
}
for (const name of ["hour", "day"]) {
  $(name).addEventListener("click", () => {
    span = name;
    for (const other of ["hour", "day"]) $(other).setAttribute("aria-pressed", String(other === span));
    if (status) draw();
  });
}
$("search").addEventListener("input", () => status && sources());
$("sources").addEventListener("click", (event) => {
  const key = event.target.dataset?.sort;
  if (key) { sort = key; sources(); }
});
new EventSource("/api/events").addEventListener("message", (event) => {
  [before, status, lastSeen] = [status, JSON.parse(event.data), Date.now()];
  draw();
});
setInterval(() => {
  const isLive = Date.now() - lastSeen < 15000;
  $("link").textContent = isLive ? "live" : lastSeen ? `no news for ${time((Date.now() - lastSeen) / 1000)}: is the relay running?` : "no answer yet";
  $("link").className = isLive ? "" : "bad";
}, 1000);
refresh();
setInterval(refresh, 10000);
