"""`cdl-hf demo`, from a checkout: a web page with the predictions of a run's teacher and student.

python recipes/demo.py runs/my_run
"""

from cdl_hf.commands.demo import main

if __name__ == "__main__":
    main()
