"""A station program that tells the agent what it does: run it beside an agent that has an `intake` source.

    python examples/station_program.py                                   # http://127.0.0.1:8801
    python examples/station_program.py unix:/run/linewarden/intake.sock

It needs nothing but the agent's one file agent/client.py, installed with the agent or copied beside this one.
"""

import logging
import sys

from agent.client import Client, Handler, NotAccepted, correlated

log = logging.getLogger("press")


def main(url: str) -> int:
    """One production order, told in three ways."""
    with Client(url, program="press") as client:
        logging.basicConfig(level=logging.INFO, handlers=[logging.StreamHandler(), Handler(client)])
        with correlated("order-4711"):  # all that follows shares this id
            client.emit("production.order.started", "an order was started", actor="ann", data={"order": "4711"})
            log.warning("pressure %s bar is high", 7.2, extra={"pressure_bar": 7.2})
            try:
                client.send(
                    "quality.rejected", "a part was scrapped", data={"part": "A-77"}
                )  # returns when it is on disk
            except NotAccepted as error:
                log.warning("The rejected part is not recorded: %s", error)
                return 1
        log.info("done")
    print(client.stats())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8801"))
