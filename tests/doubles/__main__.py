"""`python -m tests.doubles`: the bundled organization on a port, until killed. One line of JSON says where and how."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import threading
from datetime import date

from tests.doubles.bundled import bundled
from tests.doubles.confluent_cloud import Server, served


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.doubles", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes any that is free")
    parser.add_argument("--first", type=date.fromisoformat, default=date(2025, 9, 1), help="first day of the costs")
    parser.add_argument("--days", type=int, default=40, help="how many days have costs")
    parser.add_argument("--principals", type=int, default=0, help="so many more service accounts")
    parser.add_argument("--revised", type=date.fromisoformat, help="a day of which one line costs 1 more")
    asked = parser.parse_args()
    organization = bundled(asked.first, asked.days, principals=asked.principals)
    if asked.revised is not None:
        (record,) = organization.find(asked.revised, "KAFKA_STORAGE", "lkc-prod1")
        organization.revise(record["id"], amount=record["amount"] + 1)
    with served(organization, port=asked.port) as server, contextlib.suppress(KeyboardInterrupt):
        sys.stdout.write(json.dumps(told(server)) + "\n")
        sys.stdout.flush()
        threading.Event().wait()


def told(server: Server) -> dict[str, object]:
    """What a client must know; the keys open nothing else."""
    organization = server.organization
    flink = {region: {"api_key": one.key, "api_secret": one.secret} for region, one in organization.flink.items()}
    return {
        "url": server.url,
        "api_key": organization.credential.key,
        "api_secret": organization.credential.secret,
        "flink": {"url": server.flink_url, "keys": flink},
    }


if __name__ == "__main__":
    main()
