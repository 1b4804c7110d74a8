from tiny_runs import drawings, pair

__all__ = ["drawings", "pair"]
