"""`cdl-hf report`, from a checkout: report of finished runs.

python recipes/report.py runs/compare --output_dir runs/report
"""

from cdl_hf.commands.report import main

if __name__ == "__main__":
    main()
