"""`cdl-hf export`, from a checkout: export of a saved model to ONNX and torch.export.

python recipes/export.py runs/my_run/student --output_dir exported
"""

from cdl_hf.commands.export import main

if __name__ == "__main__":
    main()
