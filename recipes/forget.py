"""`cdl-hf forget`, from a checkout: classes that a finished model must forget.

python recipes/forget.py runs/my_run --classes tapir --output_dir runs/my_models
"""

from cdl_hf.commands.forget import main

if __name__ == "__main__":
    main()
