"""`cdl-hf train`, from a checkout: a teacher and a student learn a stream of tasks.

accelerate launch recipes/train.py
"""

from cdl_hf.commands.train import main

if __name__ == "__main__":
    main()
