"""Continual distillation learning: a teacher and a student learn a stream of tasks.

cdl-hf train                                                # the bundled drawings
cdl-hf train --config quickdraw100/l2p --distillation kd --seed 1
accelerate launch -m cdl_hf.commands.train                  # in several processes, or as your accelerate config says
accelerate launch recipes/train.py                          # the same, in a checkout

Exit code: 0 all is done; 2 a mistake in the arguments; 75 (EX_TEMPFAIL) interrupted, resume with
--resume_from_checkpoint; 69 (EX_UNAVAILABLE) the run is finished, but the Hub did not take it, push with
`cdl-hf push`; 1 all else. Launchers have codes of their own: with accelerate launch and torchrun every code but 0
becomes 1, and a launcher that is itself stopped ends with 143 (accelerate launch of one process, before the run has
saved) or 1. So start one process with `cdl-hf train` where the code matters; accelerate_configs/README.md says more.
"""

import sys
from typing import TYPE_CHECKING

from ..arguments.config import RUN, HubArguments
from ..arguments.sets import record_of_resumed
from ..cli import ParsedArguments, cli_error, parse
from ..runs.interruptions import EX_UNAVAILABLE, interruptible

if TYPE_CHECKING:
    from ..runs.folder import RunFolder


@interruptible()
def main(argv: list[str] | None = None) -> None:
    arguments = parse(RUN, argv, description=__doc__, record=record_of_resumed)
    *_, args, hub_args = arguments

    # Only now what takes seconds to import: `--help` and mistakes are answered at once.
    from ..hub.push import check_ready
    from ..runs.folder import RunFolder
    from ..training.build import run_name

    try:
        options = {"overwrite": args.overwrite_output_dir, "resume": args.resume_from_checkpoint}
        folder = RunFolder.open(args.output_dir, run_name(arguments), **options)
        if hub_args.push_to_hub:
            check_ready(folder.path, hub_args.hub_model_id)
    except ValueError as error:
        cli_error(str(error))
    with folder:
        run(arguments, folder)


def run(arguments: ParsedArguments, folder: "RunFolder") -> None:
    """Trains and pushes, while no other run can get into the folder."""
    from ..runs import distributed
    from ..training import ContinualDistillationTrainer, build
    from ..training.dry_run import describe_run
    from ..training.exits import exit_on_failure
    from ..training.results import describe_models, next_steps, table

    stream_args, model_args, distillation_args, args, hub_args = arguments
    try:
        accelerator = distributed.build_accelerator(args, folder.path)
        with exit_on_failure(None, accelerator):
            if args.dry_run:
                parts = (stream_args, model_args, distillation_args, args)
                accelerator.print(describe_run(*parts, folder.path, accelerator))
                return

            accelerator.print(distributed.describe_devices(accelerator))
            with distributed.raise_on_all_ranks():
                stream = build.build_stream(stream_args)
                accelerator.print(stream)
                pair = build.build_models(stream, model_args, distillation_args, args)
                trainer = ContinualDistillationTrainer(
                    stream,
                    pair.objective,
                    pair.image_processor,
                    args,
                    folder=folder,
                    accelerator=accelerator,
                    arguments=arguments,
                )
                models = {role: learner.model for role, learner in trainer.learners.items()}
                accelerator.print(describe_models(models, pair.image_processor))
            trainer.begin()
    except ValueError as error:  # the user's mistakes, each in one sentence
        cli_error(str(error))

    accelerator.print(f"output: {folder.path}")
    with exit_on_failure(folder, accelerator):
        results = trainer.train()
    accelerator.print(table(results))
    accelerator.print(next_steps(results, folder.path, models.values()))

    if hub_args.push_to_hub and accelerator.is_main_process:
        with exit_on_failure(folder, accelerator):
            push(hub_args, folder)


def push(hub_args: HubArguments, folder: "RunFolder") -> None:
    """Pushes the models of a finished run."""
    from ..hub.push import PushError, push_run

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
