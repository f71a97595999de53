// Writes with influx (InfluxDB 1.x): prints what each call gives, a line of JSON each.
const { InfluxDB } = require("influx");

const [host, port, other, ...only] = process.argv.slice(2);
const client = (database) => new InfluxDB({ host, port: Number(port), database });

async function call(name, work) {
  if (only.length && !only.includes(name)) return;
  let outcome;
  try {
    outcome = { gives: (await work()) ?? null };
  } catch (error) {
    outcome = { raises: error.constructor.name, code: error.res?.statusCode ?? null, content: error.message };
  }
  console.log(JSON.stringify({ call: name, ...outcome }));
}

const points = (measurement, count, begin) =>
  Array.from({ length: count }, (_, n) => ({
    measurement, tags: { host: `h${n % 20}` }, fields: { v: n }, timestamp: String(BigInt(begin) + BigInt(n)),
  }));

async function main() {
  const one = client("telegraf");
  await call("ping", async () => {
    const [found] = await one.ping(60000);
    return [found.online, found.version];
  });
  await call("one", () => one.writePoints(points("one", 1, "1500000000000000000")));
  await call("batch", () => one.writePoints(points("batch", 1000, "1500000000000000000")));
  for (const [precision, begin] of Object.entries({
    n: "1500000000000000000", u: "1500000000000000", ms: "1500000000000", s: "1500000000", m: "25000000", h: "416666",
  })) {
    await call(`precision ${precision}`, () => one.writePoints(points(`unit_${precision}`, 3, begin), { precision }));
  }
  await call("nothing", () => one.writePoints([]));
  const bad = [...points("good", 1, "1500000000000000000"), { measurement: "bad", fields: { v: NaN } }];
  await call("bad line", () => one.writePoints(bad));
  await call("missing database", () => one.writePoints(points("elsewhere", 1, "1500000000000000000"), { database: other }));
  await call("databases", async () => (await one.getDatabaseNames()).includes("telegraf"));
}

main();
