from tiny_runs import command, drawings, pair, train

__all__ = ["command", "drawings", "pair", "train"]
