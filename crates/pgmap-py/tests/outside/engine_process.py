"""A process with an engine in it, which tests kill while it works."""

import time


class EngineProcess:
    """Runs ``work(*arguments, counts, stop)`` until it is stopped or killed.

    ``counts[0]`` says what it is doing. No wait is longer than ``bound`` seconds.
    """

    def __init__(self, context, work, arguments, counts, bound):
        self.counts, self.stop, self.bound = counts, context.Event(), bound
        self.process = context.Process(target=work, args=(*arguments, counts, self.stop))
        self.process.start()

    def kill_while(self, state, delay):
        """Kills it a moment after it began such work; whether it was still at that."""
        end = time.monotonic() + self.bound
        while self.counts[0] != state and time.monotonic() < end:
            time.sleep(0.0002)
        time.sleep(delay)
        self.process.kill()
        self.process.join()
        return self.counts[0] == state

    def end(self):
        self.stop.set()
        self.process.join(self.bound)
        code = self.process.exitcode
        self.process.kill()
        assert code == 0, f"the engine ended with {code}"
