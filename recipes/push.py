"""`cdl-hf push`, from a checkout: pushes the models of a finished run to the Hub.

python recipes/push.py runs/my_run --hub_model_id me/drawings
"""

from cdl_hf.commands.push import main

if __name__ == "__main__":
    main()
