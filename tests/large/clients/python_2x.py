"""Writes with influxdb-client (InfluxDB 2.x): prints what each call gives, a line of JSON each."""
import json
import logging
import sys

from influxdb_client import InfluxDBClient, WriteOptions
from influxdb_client.client.write_api import SYNCHRONOUS

url, other, only = sys.argv[1], sys.argv[2], sys.argv[3:]
logging.disable()
UNITS = {"ns": 10**9, "us": 10**6, "ms": 1000, "s": 1}


def lines(measurement, count, unit="ns"):
    return ["%s,host=h%d v=%d %d" % (measurement, n % 20, n, 1500000000 * UNITS[unit] + n) for n in range(count)]


def call(name, function):
    if only and name not in only:
        return
    try:
        outcome = {"gives": function()}
    except Exception as error:
        response = getattr(error, "response", None)
        code = getattr(error, "status", None) or getattr(response, "status", None)
        lines = [[one.line_number, one.error_message] for one in getattr(error, "line_errors", [])]
        content = str(getattr(error, "message", None) or error)
        outcome = {"raises": type(error).__name__, "code": code, "content": content, "lines": lines}
    print(json.dumps({"call": name, **outcome}, default=str), flush=True)


def client(**more):
    return InfluxDBClient(url=url, token="me:secret", org="-", timeout=60000, **more)


def write(client, records, bucket="telegraf", unit="ns"):
    return client.write_api(write_options=SYNCHRONOUS).write(bucket=bucket, record=records, write_precision=unit)


def shown(kind, error):
    return "%s %s: %s" % (kind, getattr(error, "status", None), getattr(error, "message", None) or error)


def batching(records):
    said = []
    options = WriteOptions(batch_size=500, max_retries=1, retry_interval=1, exponential_base=1, jitter_interval=0)
    api = one.write_api(
        options,
        success_callback=lambda *_: said.append("success"),
        error_callback=lambda _, __, error: said.append(shown("error", error)),
        retry_callback=lambda _, __, error: said.append(shown("retry", error)),
    )
    for record in records:
        api.write(bucket="telegraf", record=record)
    api.close()
    return said


one = client()
zipped = client(enable_gzip=True)
call("ping", one.ping)
call("version", one.version)
call("health", lambda: one.health().status)
call("ready", lambda: one.ready().status)
call("one", lambda: write(one, lines("one", 1)))
call("batch", lambda: write(one, lines("batch", 1000)))
call("batch with gzip", lambda: write(zipped, lines("zipped", 1000)))
call("batching", lambda: batching(lines("batching", 1000)))
for unit in UNITS:
    call("precision " + unit, lambda: write(one, lines("unit_" + unit, 3, unit), unit=unit))
call("nothing", lambda: write(one, ""))
call("retention policy", lambda: write(one, lines("policy", 1), "telegraf/autogen"))
call("bad line", lambda: write(one, ["good v=1 1", "bad", "good v=2 2"]))
call("bad line in batches", lambda: batching(["good v=1 1", "bad", "good v=2 2"]))
call("bad lines only", lambda: write(one, ["bad", "m v"]))
call("missing database", lambda: write(one, lines("elsewhere", 1), other))
call("no database", lambda: write(one, lines("nowhere", 1), ""))
