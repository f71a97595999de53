// Reads with influx (InfluxDB 1.x): prints what each call gives, a line of JSON each.
const { InfluxDB } = require("influx");

const [host, port] = process.argv.slice(2);
const one = new InfluxDB({ host, port: Number(port), database: "telegraf" });

async function call(name, give) {
  let outcome;
  try {
    outcome = { gives: await give() };
  } catch (error) {
    outcome = { raises: error.constructor.name, content: String(error.message) };
  }
  console.log(JSON.stringify({ call: name, ...outcome }));
}

async function main() {
  await call("select", () => one.query("SELECT v FROM batch WHERE v < 30 GROUP BY host"));
  await call("several", () => one.query(["SELECT max(v) FROM batch", "SELECT min(v) FROM batch"]));
  await call("raw", () => one.queryRaw("SELECT mean(v) FROM batch", { precision: "ms" }));
  await call("placeholders", () => one.query("SELECT v FROM batch WHERE host = $h LIMIT 3", { placeholders: { h: "h1" } }));
  await call("measurements", () => one.getMeasurements());
  await call("series", async () => (await one.getSeries({ measurement: "batch" })).length);
  await call("databases", () => one.getDatabaseNames());
  await call("policies", () => one.showRetentionPolicies());
  await call("nothing", () => one.query("SELECT v FROM nowhere"));
  await call("mistake", () => one.query("SELECT FROM"));
}

main();
