"""Reads with influxdb (InfluxDB 1.x): prints what each call gives, a line of JSON each."""
import json
import sys

from influxdb import InfluxDBClient

host, port = sys.argv[1], int(sys.argv[2])


def call(name, function):
    try:
        outcome = {"gives": function()}
    except Exception as error:
        outcome = {"raises": type(error).__name__, "content": str(getattr(error, "content", error))}
    print(json.dumps({"call": name, **outcome}, sort_keys=True), flush=True)


def rows(*arguments, **more):
    found = one.query(*arguments, **more)
    return [[list(key), list(points)] for one in (found if isinstance(found, list) else [found]) for key, points in one.items()]


one = InfluxDBClient(host, port, database="telegraf")
zipped = InfluxDBClient(host, port, database="telegraf", gzip=True)
call("select", lambda: rows("SELECT v FROM batch WHERE v < 30 GROUP BY host"))
call("select with epoch", lambda: rows("SELECT mean(v) FROM batch", epoch="ms"))
call("several", lambda: rows("SELECT max(v) FROM batch; SHOW FIELD KEYS FROM batch"))
call("chunked", lambda: rows("SELECT v FROM batch", chunked=True, chunk_size=100))
call("parameters", lambda: rows("SELECT v FROM batch WHERE host = $h LIMIT 3", bind_params={"h": "h1"}))
call("by post", lambda: rows("SELECT count(v) FROM batch", method="POST"))
call("with gzip", lambda: [list(points) for points in zipped.query("SELECT last(v) FROM batch")])
call("measurements", one.get_list_measurements)
call("databases", one.get_list_database)
call("policies", lambda: one.get_list_retention_policies("telegraf"))
call("series", lambda: len(one.get_list_series("telegraf", "batch")))
call("nothing", lambda: rows("SELECT v FROM nowhere"))
call("mistake", lambda: rows("SELECT FROM"))
call("no such database", lambda: rows("SELECT v FROM m", database="nowhere"))
