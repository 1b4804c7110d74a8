from tiny_runs import command, drawings, finished_run, pair, train

__all__ = ["command", "drawings", "finished_run", "pair", "train"]
