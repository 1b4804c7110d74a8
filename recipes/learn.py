"""`cdl-hf learn`, from a checkout: further classes for a finished model, without its earlier images.

accelerate launch recipes/learn.py runs/my_run --dataset my_new_classes --output_dir runs/my_models
"""

from cdl_hf.commands.learn import main

if __name__ == "__main__":
    main()
