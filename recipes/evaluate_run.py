"""`cdl-hf evaluate`, from a checkout: evaluation of a run or a saved model.

python recipes/evaluate_run.py runs/my_run
"""

from cdl_hf.commands.evaluate import main

if __name__ == "__main__":
    main()
