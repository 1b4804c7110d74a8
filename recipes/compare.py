"""`cdl-hf compare`, from a checkout: runs over a grid of axes, and a table of their results.

python recipes/compare.py recipes/quickdraw100/grid.yaml --output_dir runs/compare
"""

from cdl_hf.commands.compare import main

if __name__ == "__main__":
    main()
