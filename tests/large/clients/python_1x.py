"""Writes with influxdb (InfluxDB 1.x): prints what each call gives, a line of JSON each."""
import json
import sys

from influxdb import InfluxDBClient

host, port, other, only = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]


def client(database="telegraf", **more):
    return InfluxDBClient(host, port, database=database, **more)


def call(name, function):
    if only and name not in only:
        return
    try:
        outcome = {"gives": function()}
    except Exception as error:
        code = getattr(error, "code", None)
        outcome = {"raises": type(error).__name__, "code": code, "content": str(getattr(error, "content", error))}
    print(json.dumps({"call": name, **outcome}), flush=True)


def points(measurement, count, unit=1):
    return [
        {"measurement": measurement, "tags": {"host": "h%d" % (n % 20)}, "time": 1500000000 * unit + n, "fields": {"v": n}}
        for n in range(count)
    ]


one = client()
zipped = client(gzip=True)
call("ping", one.ping)
call("ping with gzip", zipped.ping)
call("one", lambda: one.write_points(points("one", 1)))
call("batch", lambda: one.write_points(points("batch", 1000)))
call("batch with gzip", lambda: zipped.write_points(points("zipped", 1000)))
call("batches", lambda: zipped.write_points(points("batches", 1000), batch_size=100))
units = {"n": 10**9, "u": 10**6, "ms": 1000, "s": 1, "m": 1, "h": 1}
for unit in units:
    times = {"m": 1 / 60, "h": 1 / 3600}.get(unit, units[unit])
    made = points("unit_" + unit, 3, int(1500000000 * times) / 1500000000)
    for point in made:
        point["time"] = int(point["time"])
    call("precision " + unit, lambda: one.write_points(made, time_precision=unit))
call("nothing", lambda: one.write_points([]))
call("bad line", lambda: one.write_points(["good v=1 1", "bad", "good v=2 2"], protocol="line"))
call("bad lines only", lambda: one.write_points(["bad", "m v"], protocol="line"))
call("missing database", lambda: client(other).write_points(points("elsewhere", 1)))
call("no database", lambda: client(None).write_points(points("nowhere", 1)))
call("databases", lambda: "telegraf" in [found["name"] for found in one.get_list_database()])
