"""Continual distillation learning: a teacher and a student learn a stream of tasks.

accelerate launch recipes/train.py                                   # the bundled drawings
accelerate launch recipes/train.py --config recipes/quickdraw100/l2p.yaml --distillation kd --seed 1
"""

import sys
from pathlib import Path

from cdl_hf.training.arguments import DistillationArguments, ModelArguments, StreamArguments, TrainingArguments
from cdl_hf.training.parser import parse, refuse, to_dict, to_yaml


def main() -> None:
    arguments = parse((StreamArguments, ModelArguments, DistillationArguments, TrainingArguments), description=__doc__)
    stream_args, model_args, distillation_args, args = arguments

    # Only now what takes seconds to import: `--help` and mistakes are answered at once.
    from cdl_hf.hub.model_card import ModelCardContent, write_model_card
    from cdl_hf.training import ContinualDistillationTrainer, RunFolder, accelerators, build, report
    from cdl_hf.training.agreement import together
    from cdl_hf.training.dry_run import describe_run
    from cdl_hf.training.ending import ended_plainly
    from cdl_hf.training.fingerprint import fingerprint

    try:
        # Where: the output folder, processes and devices
        name = f"{Path(stream_args.dataset).stem}-{model_args.prompt_method}-{distillation_args.distillation}"
        folder = RunFolder.open(args.output_dir, name, overwrite=args.overwrite, resume=args.resume)
        accelerator = accelerators.build_accelerator(args, folder.path)

        if args.dry_run:
            accelerator.print(describe_run(*arguments, folder.path, accelerator))
            return

        # What: the stream, teacher and student
        with together():
            stream = build.build_stream(stream_args)
            learners = build.build_learners(stream, model_args, distillation_args, args)
            trainer = ContinualDistillationTrainer(
                stream,
                learners.method,
                learners.teacher,
                learners.image_processor,
                args,
                folder=folder,
                accelerator=accelerator,
                fingerprint=fingerprint(arguments, stream, learners, accelerator),
            )
            accelerator.print(stream)
            accelerator.print(report.describe_models(learners))
            if args.resume:
                trainer.resume()
        with together():
            folder.create().write_arguments(arguments.given, to_yaml(arguments))
            folder.write_split(stream.split_list())
    except ValueError as error:  # the user's mistakes, each in one sentence
        refuse(str(error))

    accelerator.print(f"output: {folder.path}")
    accelerators.start_trackers(accelerator, args, to_dict(arguments))
    with ended_plainly(folder, accelerator):
        # The continual learning
        trainer.train()
        accelerator.end_training()

        # What it came to: results, pictures, models and their cards
        results = report.results(trainer, to_dict(arguments))
        folder.write_results(results, trainer.matrices)
        trainer.save_models()
        if accelerator.is_main_process:
            for role in trainer.models:
                backbone = learners.backbones[role]
                card = ModelCardContent(
                    role=role,
                    results=results,
                    backbones={role: backbone.source for role, backbone in learners.backbones.items()},
                    command=["accelerate", "launch", *sys.argv],
                    weights_licence=backbone.pretrained_cfg.get("license"),
                    base_model=backbone.hub_name,
                )
                write_model_card(folder.path / role, card)
    accelerator.print(report.table(results))
    accelerator.print(f"\nEverything is in {folder.path}: results.json, accuracy.png, matrices.png, and the models.")
    accelerator.print("Use one of them:")
    role = next(iter(trainer.models))
    accelerator.print("  import cdl_hf; from transformers import pipeline")
    accelerator.print(f'  pipeline("image-classification", model="{folder.path / role}")("image.png")')


if __name__ == "__main__":
    main()
