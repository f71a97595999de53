// Writes with @influxdata/influxdb-client (InfluxDB 2.x): prints what each call gives, a line of JSON each.
const { InfluxDB, setLogger } = require("@influxdata/influxdb-client");
const { HealthAPI, PingAPI, ReadyAPI } = require("@influxdata/influxdb-client-apis");

const [url, other, ...only] = process.argv.slice(2);
const influx = new InfluxDB({ url, token: "me:secret", timeout: 60000 });
const units = { ns: 10n ** 9n, us: 10n ** 6n, ms: 1000n, s: 1n };
setLogger({ error() {}, warn() {} });

async function call(name, work) {
  if (only.length && !only.includes(name)) return;
  let outcome;
  try {
    outcome = { gives: (await work()) ?? null };
  } catch (error) {
    outcome = { raises: "HttpError", code: error.statusCode ?? null, content: error.message };
  }
  console.log(JSON.stringify({ call: name, ...outcome }));
}

const lines = (measurement, count, unit = "ns") =>
  Array.from({ length: count }, (_, n) => `${measurement},host=h${n % 20} v=${n} ${1500000000n * units[unit] + BigInt(n)}`);

// Gives the statuses that tries failed with.
async function write(records, unit = "ns", bucket = "telegraf", options = {}) {
  const failed = [];
  const writeFailed = (error) => { failed.push(error.statusCode); };
  const quick = { maxRetries: 0, minRetryDelay: 1, maxRetryDelay: 2, retryJitter: 1 };
  const api = influx.getWriteApi("-", bucket, unit, { ...quick, writeFailed, ...options });
  api.writeRecords(records);
  await api.close();
  return failed;
}

async function main() {
  await call("ping", () => new PingAPI(influx).getPing());
  await call("health", async () => (await new HealthAPI(influx).getHealth()).status);
  await call("ready", async () => (await new ReadyAPI(influx).getReady()).status);
  await call("one", () => write(lines("one", 1)));
  await call("batch", () => write(lines("batch", 1000), "ns", "telegraf", { gzipThreshold: 1e9 }));
  await call("batch with gzip", () => write(lines("zipped", 1000)));
  for (const unit of Object.keys(units)) {
    await call(`precision ${unit}`, () => write(lines(`unit_${unit}`, 3, unit), unit));
  }
  await call("bad line", () => write(["good v=1 1", "bad", "good v=2 2"]));
  await call("missing database", () => write(lines("elsewhere", 1), "ns", other));
  await call("with tries", () => write(lines("one", 1), "ns", "telegraf", { maxRetries: 2 }));
}

main();
