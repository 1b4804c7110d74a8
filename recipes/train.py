"""Continual distillation learning: a teacher and a student learn a stream of tasks.

accelerate launch recipes/train.py                                   # the bundled drawings
accelerate launch recipes/train.py --config recipes/quickdraw100/l2p.yaml --distillation kd --seed 1

Exit code: 0 all is done; 2 a mistake in the arguments; 75 (EX_TEMPFAIL) interrupted, resume with
--resume_from_checkpoint; 69 (EX_UNAVAILABLE) the run is finished, but the Hub did not take it, go on with
recipes/push.py; 1 all else. Launchers have codes of their own: with accelerate launch and torchrun every code but 0
becomes 1, and a launcher that is itself stopped ends with 143 (accelerate launch of one process, before the run has
saved) or 1. So start one process with `python recipes/train.py` where the code matters; accelerate_configs/README.md
says more.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cdl_hf.cli import ParsedArguments, cli_error, parse, to_dict, to_yaml
from cdl_hf.training.arguments import RUN, record_of_resumed
from cdl_hf.training.interruptions import EX_UNAVAILABLE, interruptible

if TYPE_CHECKING:
    from cdl_hf.training import RunFolder


@interruptible()
def main() -> None:
    arguments = parse(RUN, description=__doc__, record=record_of_resumed)
    stream_args, model_args, distillation_args, args, hub_args = arguments

    # Only now what takes seconds to import: `--help` and mistakes are answered at once.
    from cdl_hf.hub.push import check_ready
    from cdl_hf.training import RunFolder

    try:
        # Where: the output folder
        name = f"{Path(stream_args.dataset).stem}-{model_args.prompt_method}-{distillation_args.distillation}"
        name += f"-seed{args.seed}"
        folder = RunFolder.open(
            args.output_dir, name, overwrite=args.overwrite_output_dir, resume=args.resume_from_checkpoint
        )
        if hub_args.push_to_hub:
            check_ready(folder.path, hub_args.hub_model_id)
    except ValueError as error:
        cli_error(str(error))
    with folder:
        run(arguments, folder)


def run(arguments: ParsedArguments, folder: "RunFolder") -> None:
    """All else, while no other run can get into the folder."""
    from cdl_hf.data import dataset_spec
    from cdl_hf.hub.model_card import ModelCardContent, complete_model_folder
    from cdl_hf.hub.push import PushError, push_run
    from cdl_hf.training import ContinualDistillationTrainer, build, distributed
    from cdl_hf.training import results as run_results
    from cdl_hf.training.distributed import raise_on_all_ranks
    from cdl_hf.training.dry_run import describe_run
    from cdl_hf.training.exits import exit_on_failure
    from cdl_hf.training.run_images import RunImages

    stream_args, model_args, distillation_args, args, hub_args = arguments
    try:
        # Processes and devices
        accelerator = distributed.build_accelerator(args, folder.path)

        with exit_on_failure(None, accelerator):
            if args.dry_run:
                told = describe_run(stream_args, model_args, distillation_args, args, folder.path, accelerator)
                accelerator.print(told)
                return

            accelerator.print(distributed.describe_devices(accelerator))

            # What: the stream, teacher and student
            with raise_on_all_ranks():
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
                    arguments=arguments,
                )
                accelerator.print(stream)
                accelerator.print(run_results.describe_models(learners))
                if args.resume_from_checkpoint:
                    trainer.resume()
            folder.create()
            with raise_on_all_ranks():
                folder.write_arguments(arguments.given, to_yaml(arguments))
                folder.write_split(stream.split_list())
                images = RunImages.of(stream)
                folder.write_images(images.content())
    except ValueError as error:  # the user's mistakes, each in one sentence
        cli_error(str(error))

    if note := images.repeats():
        accelerator.print(f"note: {note}")
    accelerator.print(f"output: {folder.path}")
    with exit_on_failure(folder, accelerator):
        distributed.start_trackers(accelerator, args, to_dict(arguments), trainer.steps)

        # The continual learning
        trainer.train()

        # What it came to: pictures, models and their cards, and last the results, which say that all is there
        results = run_results.results(trainer, to_dict(arguments))
        folder.write_pictures(results, trainer.matrices)
        trainer.save_models()
        accelerator.end_training()
        if accelerator.is_main_process:
            source, words = dataset_spec(stream_args.dataset), folder.given()["command_line"]
            for role, model in trainer.models.items():
                backbone = learners.backbones[role]
                networks = [backbone] if model.query_backbone is None else [backbone, learners.query_backbone]
                card = ModelCardContent(
                    role=role,
                    results=results,
                    backbones={role: backbone.source for role, backbone in learners.backbones.items()},
                    command=[
                        "accelerate",
                        "launch",
                        sys.argv[0],
                        *(word for word in words if word != "--resume_from_checkpoint"),
                    ],
                    weights_license=backbone.pretrained_cfg.get("license"),
                    data_license=source.license,
                    base_model=[network.hub_name for network in networks if network.hub_name],
                    hub_dataset=source.hub_name,
                )
                complete_model_folder(folder.path, card)
        folder.write_results(results)
    accelerator.print(run_results.table(results))
    accelerator.print(f"\nEverything is in {folder.path}: results.json, accuracy.png, matrices.png, and the models.")
    accelerator.print("Use one of them:")
    role = next(iter(trainer.models))
    accelerator.print("  import cdl_hf; from transformers import pipeline")
    accelerator.print(f'  pipeline("image-classification", model="{folder.path / role}")("image.png")')

    if hub_args.push_to_hub and accelerator.is_main_process:
        with exit_on_failure(folder, accelerator):
            try:
                addresses = push_run(
                    folder.path,
                    hub_args.hub_model_id,
                    private=hub_args.hub_private,
                    task_revisions=hub_args.hub_task_revisions,
                )
            except PushError as error:
                print(f"The training is finished, but {error}", file=sys.stderr)
                sys.exit(EX_UNAVAILABLE)
        print("\n".join(f"{role}: {address}" for role, address in addresses.items()))


if __name__ == "__main__":
    main()
