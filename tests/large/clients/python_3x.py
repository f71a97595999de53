"""Writes with influxdb3-python (InfluxDB 3.x), to the endpoint of 2.x or of 3.x: prints what each call gives, a line of JSON each."""
import json
import sys

from influxdb_client_3 import InfluxDBClient3

url, other, endpoint, only = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
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


def client(database="telegraf", **more):
    is_v2 = endpoint == "2.x"
    return InfluxDBClient3(host=url, token="secret", database=database, org="-", write_use_v2_api=is_v2, **more)


one = client()
call("version", one.get_server_version)
call("one", lambda: one.write(lines("one", 1)))
call("batch", lambda: one.write(lines("batch", 1000)))
call("batch with gzip", lambda: client(enable_gzip=True).write(lines("zipped", 1000)))
for unit in UNITS:
    call("precision " + unit, lambda: one.write(lines("unit_" + unit, 3, unit), write_precision=unit))
call("bad line", lambda: one.write(["good v=1 1", "bad", "good v=2 2"]))
call("bad lines only", lambda: one.write(["bad", "m v"]))
if endpoint == "3.x":
    call("whole", lambda: client(write_accept_partial=False).write(lines("whole", 3)))
    call("not whole", lambda: client(write_accept_partial=False).write(["lost v=1 1", "bad", "lost v=2 2"]))
call("missing database", lambda: client(other).write(lines("elsewhere", 1)))
