"""Sends callbacks as Tencent Cloud does, and keeps records of them for `livebridge recover`, by a clock of its own.

tencent.py URL KEY SECONDS MINUTES FILE: a minute takes SECONDS. For MINUTES, until now by its clock, there are five
events a minute; each is tried at once and 12 times more, a minute apart. FILE.port has the port of its API; FILE has
at the end how many events there were, and how many it gave up on. Neither signatures nor limits are verified: tests of
the repository have a fake that does.
"""

import hashlib
import heapq
import http.client
import json
import os
import sys
import threading
import time
import urllib.parse
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RETRIES = 12
STREAMS = [f"drill-{number}" for number in range(5)]

url, key, seconds, minutes, file = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
target = urllib.parse.urlsplit(url)
began = time.time()
records = []


def clock():
    """The sender's time: it reaches the real one after MINUTES of its own."""
    return began - (minutes - (time.time() - began) / seconds) * 60


def text(moment):
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def attempt(event):
    """Whether the callback was answered with 200; a record of it is kept."""
    t = int(time.time()) + 600
    body = json.dumps(event | {"t": t, "sign": hashlib.md5(f"{key}{t}".encode()).hexdigest()})
    connection = http.client.HTTPConnection(target.netloc, timeout=5)
    try:
        connection.request("POST", target.path, body, {"content-type": "application/json"})
        status = connection.getresponse().status
    except OSError:
        status = 0
    finally:
        connection.close()
    records.append({
        "EventTime": text(event["event_time"]), "EventType": event["event_type"], "StreamId": event["stream_id"],
        "Request": urllib.parse.quote_plus(body), "Response": f"status code: {status}",
        "ResponseTime": text(clock()), "ResultCode": 0 if status == 200 else 1,
    })
    return status == 200


class Api(BaseHTTPRequestHandler):
    def do_POST(self):
        query = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.headers["x-tc-action"] == "DescribeLiveStreamEventList":
            name = "EventList"
            entries = [{"AppName": "live", "DomainName": "push.example.com", "StreamName": stream,
                        "StreamStartTime": text(began - 60 * minutes), "StreamEndTime": "", "StopReason": "",
                        "Duration": 0, "ClientIp": "", "Resolution": ""} for stream in STREAMS]
        else:
            name = "DataInfoList"
            entries = [record for record in records
                       if record["StreamId"] == query["StreamName"]
                       and query["StartTime"] <= record["EventTime"] <= query["EndTime"]
                       and ("ResultCode" not in query or bool(query["ResultCode"]) == bool(record["ResultCode"]))]
        page, size = query.get("PageNum", 1), query.get("PageSize", 10)
        answer = {name: entries[(page - 1) * size:page * size], "PageNum": page, "PageSize": size,
                  "TotalNum": len(entries), "TotalPage": -(-len(entries) // size), "RequestId": "drill"}
        body = json.dumps({"Response": answer}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def write(path, content):
    with open(path + ".partial", "w") as out:
        out.write(content)
    os.rename(path + ".partial", path)


server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
threading.Thread(target=server.serve_forever, daemon=True).start()
write(file + ".port", str(server.server_port))

start = clock()
due = []
for number in range(5 * minutes):
    moment = start + 12 * number
    heapq.heappush(due, (moment, number, 0, {
        "event_type": number % 2, "stream_id": STREAMS[number // 2 % 5], "event_time": int(moment),
        "sequence": str(number), "appid": 1, "app": "push.example.com", "appname": "live",
    }))
count, lost = len(due), 0
while due:
    moment, number, tries, event = heapq.heappop(due)
    time.sleep(max(0, (moment - clock()) / 60 * seconds))
    if attempt(event):
        continue
    if tries == RETRIES:
        lost += 1
    else:
        heapq.heappush(due, (moment + 60, number, tries + 1, event))
write(file, f"{count} {lost}\n")
threading.Event().wait()
