"""`cdl-hf predict`, from a checkout: classification of image files with a saved model.

python recipes/predict.py runs/my_run/student drawing.png
"""

from cdl_hf.commands.predict import main

if __name__ == "__main__":
    main()
