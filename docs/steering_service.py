#!/usr/bin/env python3
"""A small steering service: takes reports (docs/report.md), knows what each box holds, sends players to the best one.

python3 steering_service.py [PORT] [TOKEN_FILE]     POST /v1/report   GET /v1/boxes   GET /v1/steer/films/a.mp4 -> 302
"""
import base64, bisect, hashlib, hmac, json, sys, time, urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

BODY_MAX, SILENT_AFTER = 64 << 20, 30   # bytes of a report; seconds after which a silent box is sent nobody
boxes, lock, token = {}, Lock(), None

def fingerprint(path, bits):
    """Of an asset's path, as it stands in a URL."""
    key = urllib.parse.unquote(path.lstrip("/"))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") >> (32 - bits)

def read(summary):
    """The fingerprints of a summary, sorted."""
    bits, rice = "".join(format(byte, "08b") for byte in base64.b64decode(summary["data"])), summary["rice"]
    at, last, held = 0, 0, []
    for _ in range(summary["count"]):
        zero = bits.index("0", at)
        last += (zero - at << rice) + int("0" + bits[zero + 1:zero + 1 + rice], 2)
        at = zero + 1 + rice
        held.append(last)
    return held

def take(report):
    """Notes a report; gives the reply."""
    who, told, clients = report["appliance"], report["availability"], report["clients"]
    box = boxes.get(who["id"])
    if box is None or box["boot_id"] != who["boot_id"]:
        box = boxes[who["id"]] = {"boot_id": who["boot_id"], "sequence": 0, "revision": None, "held": [], "clients": {}}
    if report["sequence"] <= box["sequence"]:
        return {"version": 1}           # a later one has overtaken it
    delta = told.get("delta")
    if "full" in told:
        box["held"], box["revision"] = read(told["full"]), told["revision"]
    elif delta and delta["since"] == box["revision"]:
        for gone in read(delta["removed"]):     # a fingerprint can stand for two assets: take out one
            del box["held"][bisect.bisect_left(box["held"], gone)]
        box["held"], box["revision"] = sorted(box["held"] + read(delta["added"])), told["revision"]
    if "prefixes" in clients:
        box["clients"] = clients
    box.update(sequence=report["sequence"], seen=time.time(), bits=told["fingerprint_bits"], health=report["health"],
               urls=report["urls"], room=report["load"]["headroom"]["bits_per_second"])
    have = {"availability": box["revision"], "clients": box["clients"].get("revision")}
    return {"version": 1, "acknowledged": have, "full": box["revision"] != told["revision"]}

def best(path):
    """Where to send a player: a box that holds the asset, then one that is well, then the one with most room."""
    def rank(box):
        wanted = fingerprint(path, box["bits"])
        at = bisect.bisect_left(box["held"], wanted)
        return box["held"][at:at + 1] == [wanted], box["health"]["state"] == "serving", box["room"] or 0
    good = [box for box in boxes.values() if box["urls"] and time.time() - box["seen"] < SILENT_AFTER
            and box["health"]["state"] in ("serving", "degraded")]
    return max(good, key=rank)["urls"][0].rstrip("/") + path if good else None

class Handler(BaseHTTPRequestHandler):
    protocol_version, timeout = "HTTP/1.1", 30

    def answer(self, status, value=None, **headers):
        body = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        length, shown = int(self.headers.get("Content-Length", 0)), self.headers.get("Authorization", "")
        if self.path != "/v1/report" or length > BODY_MAX:
            self.close_connection = True
            return self.answer(404 if length <= BODY_MAX else 413)
        body = self.rfile.read(length)
        if token and not hmac.compare_digest(shown.encode(), b"Bearer " + token):
            return self.answer(401)
        try:
            with lock:
                reply = take(json.loads(body))
        except (KeyError, TypeError, ValueError) as fault:
            return self.answer(400, {"fault": repr(fault)})
        self.answer(200, reply)

    def do_GET(self):
        with lock:
            where = best(self.path.removeprefix("/v1/steer").partition("?")[0])
            known = json.loads(json.dumps(boxes)) if self.path == "/v1/boxes" else None
        self.answer(200, known) if known is not None else self.answer(302, Location=where) if where else self.answer(503)

if __name__ == "__main__":
    token = open(sys.argv[2], "rb").read().strip() if len(sys.argv) > 2 else None
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 8000), Handler)
    print(f"listening on {server.server_port}", flush=True)
    server.serve_forever()
