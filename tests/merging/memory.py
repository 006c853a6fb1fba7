"""Anonymous memory of this process, that no file backs, while something runs."""

import threading
import time
from contextlib import contextmanager


def anonymous() -> int:
    """Bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


@contextmanager
def growth():
    """Gives a list whose one entry is, once left, the most bytes that were added at any moment within."""
    before, found, done = anonymous(), [0], threading.Event()

    def watch():
        while not done.is_set():
            found[0] = max(found[0], anonymous() - before)
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
