"""Where a run is: a bar (tqdm) if somebody watches the terminal and tqdm is installed, else a line at every log."""

import sys
import time


class Progress:
    """Shows steps of `total`, the loss, tokens per second and the time left, on stderr; nothing if it is silent."""

    def __init__(self, first, total, disable_tqdm=None, silent=False):
        self.first, self.step, self.total, self.started = first, first, total, time.perf_counter()
        self.bar, self.silent = None, silent
        if not silent and not disable_tqdm and (sys.stderr.isatty() or disable_tqdm is False):
            try:
                from tqdm.auto import tqdm
            except ImportError:
                return
            self.bar = tqdm(total=total, initial=first, unit="step", dynamic_ncols=True)

    def advance(self):
        self.step += 1
        if self.bar:
            self.bar.update()

    def log(self, logs):
        """Shows a dict of numbers as the Trainer logs them."""
        numbers = "  ".join(f"{label} {logs[name]:{form}}" for name, label, form in (
            ("loss", "loss", ".4f"), ("eval_loss", "validation loss", ".4f"), ("tokens_per_second", "tokens/s", ",.0f"),
        ) if name in logs)
        if not self.bar:
            self.say(f"step {self.step}/{self.total}  {numbers}  {self._time_left()}")
        elif "loss" in logs:
            self.bar.set_postfix_str(numbers)
        else:
            self.say(f"step {self.step}: {numbers}")

    def say(self, text):
        """A line of text, above the bar."""
        if self.bar:
            self.bar.write(text, file=sys.stderr)
        elif not self.silent:
            print(text, file=sys.stderr, flush=True)

    def close(self):
        if self.bar:
            self.bar.close()

    def _time_left(self):
        per_step = (time.perf_counter() - self.started) / max(1, self.step - self.first)
        minutes, seconds = divmod(round(per_step * (self.total - self.step)), 60)
        return f"{minutes}:{seconds:02} left"
