"""How fast, and with how much memory?

python recipes/benchmark.py --stream                # a stream over ten million rows
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from cdl_hf.training.parser import parse, refuse


@dataclass
class BenchmarkArguments:
    """What is measured."""

    stream: bool = field(default=False, metadata={"help": "time and memory to build a stream over very many rows"})
    rows: int = field(default=10_000_000, metadata={"help": "of that stream", "min": 10_000})
    json: str | None = field(default=None, metadata={"help": "file to write the figures to"})


def main() -> None:
    (args,) = parse((BenchmarkArguments,), description=__doc__)
    from benchmarks import streams

    figures = {}
    if args.stream:
        figures["stream"] = measured = streams.measure(args.rows)
        print(
            f"a stream over {args.rows:,} rows: {measured['seconds']:.1f} s; beyond the table at most "
            f"{measured['peak_bytes_per_row']:.0f} bytes a row, {measured['kept_bytes_per_row']:.0f} in the end"
        )
    if not figures:
        refuse("nothing to measure: give --stream")
    if args.json is not None:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
